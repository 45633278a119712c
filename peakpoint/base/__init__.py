"""Errors, files, locks and text for every other package. Needs no torch."""
