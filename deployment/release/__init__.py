"""Releases: written, signed, listed, rolled back."""
