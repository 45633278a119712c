"""cite: a paragraph and a BibTeX entry for the appendix of a paper. Needs no torch."""

import argparse
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from peakpoint.base.errors import UserError
from peakpoint.base.given import as_mapping
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import shown
from peakpoint.commands.arguments import Argument, a_path, takes
from peakpoint.commands.common import print_json
from peakpoint.trainer.reports import run_record, study
from peakpoint.trainer.reports.study import Group, Result, Spread


@takes(Argument("paths", nargs="+", type=a_path, metavar="RUN|SWEEP", help="runs, or the folders of sweeps"))
def cite(options: argparse.Namespace) -> int:
    """Print what a paper says of finished runs: results, spread, budget, selection and code."""
    groups = [
        (group, done) for group in study.grouped(study.read_results(options.paths)) if (done := _done(group))
    ]
    if not groups:
        raise UserError("None of these runs is finished, so there is nothing to cite.")
    found = [_facts(group, done) for group, done in groups]
    if options.json:
        print_json(found)
        return 0
    console = Console()
    for each in found:
        console.say(_paragraph(each))
        console.say("")
        for line in _entry(each):
            console.say(line)
        console.say("")
    return 0


def _done(group: Group) -> list[Result]:
    return [result for result in group.results if result.state == "finished"]


def _facts(group: Group, done: list[Result]) -> dict[str, Any]:
    """Return what is cited of runs that differ in the seed alone."""
    records = [run_record.read_run(result.run) for result in done]
    steps = [run_record.read_status(result.run)["step"] for result in done]
    first, config = records[0], records[0].get("config", {})
    hardware = as_mapping(first.get("hardware"))
    return {
        **{kind: as_mapping(config.get(kind)).get("name") for kind in ("model", "data", "optimizer")},
        "settings": list(group.overrides),
        "metric": group.metric,
        "target": done[0].target,
        "runs": [record.get("run") for record in records],
        "seeds": [result.seed for result in done],
        "n": len(done),
        "unfinished": len(group.results) - len(done),
        **{name: group.spread(name) for name in ("test", "objective", "sparsity", "epochs", "seconds")},
        "steps": sorted(set(steps)),
        "hardware": hardware.get("gpus") or hardware.get("cpu") or hardware.get("machine"),
        "commits": sorted({str(record.get("git_commit")) for record in records}),
        "changed_code": any(record.get("git_diff") for record in records),
        "peakpoint": version("peakpoint"),
        "year": str(first["attempts"][0].get("started", ""))[:4],
    }


def _spread(metric: str, found: Spread | None) -> str:
    if found is None:
        return "not measured"
    sd = f" (sd {shown(metric, found.sd)})" if found.sd is not None else ""
    return f"{shown(metric, found.mean)}{sd}"


def _paragraph(facts: Mapping[str, Any]) -> str:
    metric, target, n = str(facts["metric"]), facts["target"] or 0, facts["n"]
    pruned = f", pruned to {target:.0%} of the prunable weights" if target else ""
    among = " among those at the target sparsity" if target else ""
    left_out = (
        f" {facts['unfinished']} unfinished or diverged runs are left out." if facts["unfinished"] else ""
    )
    epochs, seconds = facts["epochs"], facts["seconds"]
    budget = [f"{epochs.mean:g} epochs" if epochs else "", f"{' to '.join(map(str, facts['steps']))} steps"]
    budget += [f"{seconds.mean:.0f} s" if seconds else ""]
    commits = ", ".join(commit[:12] for commit in facts["commits"])
    spread = f"mean and sample standard deviation over n = {n} runs" if n > 1 else "n = 1 run"
    tested, validated = (_spread(metric, facts[name]) for name in ("test", "objective"))
    return (
        f"{facts['model']} on {facts['data']}, trained with {facts['optimizer']}{pruned}: test {metric} "
        f"{tested}, validation {metric} {validated}; {spread} "
        f"(seeds {', '.join(map(str, facts['seeds']))}).{left_out} Budget of a run: "
        f"{', '.join(filter(None, budget))} on {facts['hardware']}. The network that is tested is the "
        f"checkpoint with the best validation {metric}{among}; the test set chose nothing. Settings beside "
        f"the defaults: {' '.join(facts['settings']) or 'none'}. Peakpoint {facts['peakpoint']}, commit "
        f"{commits}{' with changes' * facts['changed_code']}."
    )


def _entry(facts: Mapping[str, Any]) -> list[str]:
    """Return a BibTeX entry; characters that mean something there are left out."""
    run = re.sub(r"\W", "", str(facts["runs"][0]))[:8]
    commits = ", ".join(commit[:12] for commit in facts["commits"])
    values = {
        "title": f"{facts['model']} on {facts['data']} with {facts['optimizer']}, n = {facts['n']}",
        "howpublished": f"Peakpoint {facts['peakpoint']}, commit {commits}",
        "note": f"runs {', '.join(str(name)[:8] for name in facts['runs'])}",
        "year": facts["year"],
    }
    plain = {name: re.sub(r"[^\w .,:=+/-]", "", str(value)) for name, value in values.items()}
    return [f"@misc{{peakpoint-{run},", *(f"  {name} = {{{value}}}," for name, value in plain.items()), "}"]
