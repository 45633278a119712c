"""A sweep: its jobs planned and checked, each run in a directory of its own, and what came of them."""
