"""The entry: `peakpoint COMMAND ...` and `python -m peakpoint COMMAND ...`, run by commands/dispatch.py."""

import sys


def main() -> int:
    """Run the command line and return its exit code: 130 for a Ctrl-C, also while it is imported."""
    try:
        from peakpoint.commands.dispatch import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
