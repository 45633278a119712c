"""The entry: `python train.py KEY=VALUE ...` is `peakpoint train KEY=VALUE ...`."""

try:
    from peakpoint.commands.train import main
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}. Run `make demo`, then `source .venv/bin/activate`.") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

if __name__ == "__main__":
    main()
