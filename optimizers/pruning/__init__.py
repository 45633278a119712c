"""Pruning that attaches to any optimizer."""
