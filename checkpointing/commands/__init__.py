"""The commands of `python -m checkpointing`, a file a group. torch is imported late."""
