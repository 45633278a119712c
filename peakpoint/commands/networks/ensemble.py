"""ensemble: the average of a run's best networks, and of their weights. Imports torch when called."""

import argparse
import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import shown
from peakpoint.commands.arguments import EVALUATION, RUN, Argument, number, takes
from peakpoint.commands.common import check_there, checkpoint_root, locked, print_json
from peakpoint.commands.networks.compare import TEST, accuracy_cells, accuracy_facts
from peakpoint.deployment.inference.form import SPLITS

if TYPE_CHECKING:
    from peakpoint.checkpointing.storage.manifest import Manifest
    from peakpoint.deployment.selection.ensemble import Ensemble, Result

Results = dict[str, dict[str, "Result"]]


@takes(
    RUN,
    Argument(
        "--k", type=number(int, 2, 1000), metavar="N", help="average the N best; all there are when left out"
    ),
    Argument("--save", action="store_true", help="write the mean weights as a milestone of the run"),
    *EVALUATION,
)
def ensemble(options: argparse.Namespace) -> int:
    """Print a table of the best network, the mean of probabilities and the mean of weights."""
    check_there(options.path, options.data_root)
    root = checkpoint_root(options.path)
    with locked(root) if options.save else contextlib.nullcontext():
        from peakpoint.deployment.inference import evaluate
        from peakpoint.deployment.selection import ensemble

        chosen = ensemble.choose(root, options.k)
        device = evaluate.usable(options.device)
        found, trained_with = ensemble.load(chosen, device)
        data = evaluate.data_of(trained_with, data_root=options.data_root, device=device)
        ensemble.recalibrate(found, data)
        results = {split: ensemble.measure(found, data, split) for split in SPLITS}
        saved = ensemble.save(found, results["val"][ensemble.WEIGHTS].metrics) if options.save else None
    if options.json:
        print_json(_plain(found, results, saved))
    else:
        _print(found, results, saved, options.k)
    return 0


def _plain(found: "Ensemble", results: Results, saved: "Manifest | None") -> dict[str, Any]:
    chosen = found.chosen
    return {
        "root": str(chosen.root),
        "metric": chosen.metric,
        "role": chosen.role,
        "masks_differ": found.masks_differ,
        "sparsity": found.sparsity,
        "networks": [
            {
                "file": m.file,
                "epoch": m.epoch,
                "global_step": m.global_step,
                "sparsity": m.sparsity,
                "value": m.metrics[chosen.metric],
            }
            for m in chosen.manifests
        ],
        "results": {
            split: {
                name: {
                    "metrics": each.metrics,
                    "accuracy": accuracy_facts(each.accuracy),
                    "against_best": asdict(each.against) if each.against else None,
                }
                for name, each in by_name.items()
            }
            for split, by_name in results.items()
        },
        "saved": saved and saved.file,
    }


def _print(found: "Ensemble", results: Results, saved: "Manifest | None", k: int | None) -> None:
    console, chosen = Console(), found.chosen
    rows: list[list[object]] = [
        [number, m.file, m.epoch, m.global_step, shown("sparsity", m.sparsity), shown(chosen.metric, value)]
        for number, m in enumerate(chosen.manifests, 1)
        for value in [m.metrics[chosen.metric]]
    ]
    console.table(["", "file", "epoch", "step", "sparsity", chosen.metric], rows, words=["file"])
    for split, by_name in results.items():
        columns = ["", "right on", "accuracy", "less best's", "p", "loss"]
        console.table(columns, [[name, *_cells(each)] for name, each in by_name.items()], title=split)
    counts = ", ".join(f"{next(iter(r.values())).accuracy.count} {split}" for split, r in results.items())
    console.say(f"on {counts} images; {TEST}")
    if k and k > len(chosen.manifests):
        console.say(f"{len(chosen.manifests)} networks are averaged: there are no {k}")
    if found.masks_differ:
        console.say(
            f"the networks are pruned differently: the mean of weights has the masks of "
            f"{chosen.manifests[0].file}, and so its sparsity, {found.sparsity:.4f}"
        )
    if saved:
        console.say(f"saved the mean of weights: {chosen.root / saved.file}")


def _cells(result: "Result") -> list[str]:
    return [*accuracy_cells(result.accuracy, result.against), f"{result.metrics['loss']:.4f}"]
