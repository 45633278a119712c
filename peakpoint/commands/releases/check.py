"""check: measure the champion again, and roll back where its metric is worse by more than a threshold."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.storage import aliases
from peakpoint.commands.arguments import EVALUATION, RUN, Argument, a_path, number, takes
from peakpoint.commands.common import check_there, checkpoint_root, print_json

if TYPE_CHECKING:
    from peakpoint.deployment.selection.recheck import Checked


@takes(
    RUN,
    Argument("--alias", default="champion", metavar="NAME", help="which release"),
    Argument("--metric", default="accuracy", metavar="NAME", help="what to compare"),
    Argument(
        "--threshold",
        type=number(float, 0, 1e9),
        default=0.05,
        metavar="X",
        help="how much worse is still sound",
    ),
    Argument("--other-data", type=a_path, metavar="PATH", help="newer images: .npz, or as data.root"),
    Argument("--roll-back", action="store_true", help="to the release before, if that is better"),
    *EVALUATION,
)
def check(options: argparse.Namespace) -> int:
    """Measure and compare; 1 when it is degraded, also when it was rolled back."""
    aliases.check(options.alias)
    check_there(options.path, options.data_root, options.other_data)
    root = checkpoint_root(options.path)
    from peakpoint.deployment.selection import recheck  # these bring torch
    from peakpoint.deployment.selection.measure import Appraiser

    appraiser = Appraiser(options.data_root, options.device, options.other_data)
    found = recheck.check(root, options.alias, options.metric, options.threshold, appraiser)
    if found.degraded and options.roll_back:
        found = recheck.roll_back(found, options.alias, appraiser)
    if options.json:
        print_json(_plain(found, options.alias))
    else:
        for text in _lines(found, options.alias, roll_back=options.roll_back):
            Console().say(text)
    return int(found.degraded)


def _lines(found: "Checked", alias: str, *, roll_back: bool) -> list[str]:
    name = f"{alias} {found.version}" if found.version else found.manifest.file
    if found.measured is None:
        lines = [f"damaged: {name}: {found.finding}"]
    else:
        state, words = ("degraded", "worse by more than") if found.degraded else ("sound", "within")
        lines = [f"{state}: {name}: {found.finding}: {words} {found.threshold:g}"]
    if not (found.degraded and roll_back):
        return lines
    lines += found.notes
    if found.back is None:
        return [*lines, f"not rolled back: {alias} is still {found.version or 'not set'}"]
    assert found.earlier
    return [
        *lines,
        f"rolled back: {alias} is {found.back} again, with {found.metric} "
        f"{shown(found.metric, found.earlier.metrics[found.metric])} on the same images",
    ]


def _plain(found: "Checked", alias: str) -> dict[str, Any]:
    return {
        "alias": alias,
        "version": found.version,
        "file": str(found.root / found.manifest.file),
        "metric": found.metric,
        "recorded": found.recorded,
        "measured": found.measured and asdict(found.measured),
        "threshold": found.threshold,
        "degraded": found.degraded,
        "problem": found.problem,
        "rolled_back_to": found.back,
        "earlier": found.earlier and asdict(found.earlier),
        "notes": list(found.notes),
    }
