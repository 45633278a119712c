"""From a checkpoint to a release that serves."""
