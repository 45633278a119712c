"""train: `python train.py` and `peakpoint train`. What it does is in entry.py, whose imports take a while."""

import sys

from peakpoint.trainer import signals


def main() -> None:
    """Run the command line; the exit code is 0 only if every job ended well."""
    try:
        with signals.deferred():
            from peakpoint.commands.entry import main as run
    except signals.Ended as end:
        sys.stderr.write("Interrupted before the run began; nothing was written.\n")
        sys.exit(128 + end.number)
    except KeyboardInterrupt:  # before signals were deferred
        sys.exit(130)
    run()
