"""What the selected checkpoint of the demo gains over the final network, at the same sparsity, over seeds.

    python -m benchmarks.demo_seeds [--repeats 5] [--threads 1]

Each seed is a run of `experiment=demo` in a process of its own. Both networks have the target sparsity; the
selected one is the best of those on validation images, and the test set is read once, at the end.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._harness import ROOT, arguments, show
from peakpoint.trainer.reports.history import History, read_history


def trained(seed: int, folder: Path, threads: int) -> History:
    """Return the metrics of the demo with a seed."""
    run = folder / str(seed)
    words = ["experiment=demo", f"seed={seed}", f"threads={threads}", "report=false", "logger=[]"]
    command = [sys.executable, str(ROOT / "train.py"), *words, f"hydra.run.dir={run}"]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return read_history(run)


def main() -> int:
    """Print the test accuracy of both networks for each seed, and the gain; 1 when a seed gains nothing."""
    options = arguments(__doc__, repeats=5).parse_args()
    rows, gains = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.repeats):
            tests = trained(seed, Path(folder), options.threads).tests
            values = [100 * tests[which]["metrics"]["accuracy"] for which in ("selected", "final")]
            gains.append(values[0] - values[1])
            epoch = tests["selected"]["epoch"]
            rows[f"seed {seed}"] = [str(epoch), *(f"{v:.2f}" for v in values), f"{gains[-1]:+.2f}"]
    show("test accuracy in %", ["selected epoch", "selected", "final", "gain"], rows)
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    print(f"gain in points: mean {statistics.mean(gains):.2f}, sd {spread:.2f}, n={len(gains)}")
    return int(min(gains) <= 0)


if __name__ == "__main__":
    sys.exit(main())
