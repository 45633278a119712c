"""The trainer: from a typed configuration to a run and its report."""
