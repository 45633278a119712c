"""Checkpoints of a run: policies decide what to keep, the manager saves, the store keeps it safely."""
