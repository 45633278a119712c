"""What a run has kept: looked at, verified, repaired, copied."""
