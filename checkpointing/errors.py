"""Errors of the checkpoint subsystem; each message is one line that says what to do."""


class CheckpointError(Exception):
    """A checkpoint could not be saved, found, verified or loaded."""
