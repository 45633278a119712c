"""Checkpoints on disk: written whole, found again, verified by a manifest."""
