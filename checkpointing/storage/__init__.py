"""Checkpoints on disk: written whole, found again, vouched for by a manifest."""
