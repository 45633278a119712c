"""Checkpoints: what to keep, kept safely. Works without the trainer, and imports torch only when needed."""
