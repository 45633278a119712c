"""Networks rebuilt from checkpoints, measured and exported."""
