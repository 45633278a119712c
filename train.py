"""The entry: `python train.py KEY=VALUE ...` is `peakpoint train KEY=VALUE ...`."""

from peakpoint.commands.train import main

if __name__ == "__main__":
    main()
