"""The entry; what it does is in trainer/entry.py, whose imports a Ctrl-C may meet."""

import sys

from trainer import signals


def main() -> None:
    """Run the command line; the exit code is 0 only if every job ended well."""
    try:
        with signals.deferred():
            from trainer.entry import main as run
    except signals.Ended as end:
        sys.stderr.write("Interrupted before the run began; nothing was written.\n")
        sys.exit(128 + end.number)
    run()


if __name__ == "__main__":
    main()
