"""Copies of a run in a remote place that fsspec reaches."""
