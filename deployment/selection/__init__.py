"""Which checkpoint is good enough to be released."""
