"""resume=: the command line that continues a run, and what it may change."""
