"""Optimizers, learning-rate schedules, and pruning that attaches to any optimizer."""
