"""What promote does once nothing that is cheap to see is wrong: choose, rebuild and measure. Brings torch."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import objects
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.commands.releases import run_facts, settings
from peakpoint.commands.releases.run_facts import RunRecord
from peakpoint.deployment.inference import evaluate, network
from peakpoint.deployment.inference.evaluate import Measured
from peakpoint.deployment.inference.form import Form
from peakpoint.deployment.release import card, card_page, release
from peakpoint.deployment.release.card import Facts, Result
from peakpoint.deployment.release.release import Release
from peakpoint.deployment.selection import rules, select


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What is released from which checkpoint, under which root; `recorded` is what it was compared with."""

    root: Path
    source: Path
    release: Release
    recorded: Mapping[str, float]
    measured: Measured


def selected(root: Path, into: Path | None, options: argparse.Namespace) -> Manifest:
    """What `select` chooses of a run, verified; the champion is that of where the release will lie."""
    champion_of = into if into and listing.is_root(into) else None
    found = select.choose(
        [root],
        rules.load(options.rules),
        champion_of=champion_of,
        data_root=options.data_root,
        device=options.device,
    )
    if found.winner is None:
        again = ["select", str(options.path)]
        again += ["--rules", options.rules] if options.rules != rules.DEFAULT else []
        again += ["--champion-of", str(champion_of)] if champion_of else []
        raise CheckpointError(f"{found.nothing()} To see why: peakpoint {shlex.join(again)}")
    return found.winner[1]


def prepared(
    source: tuple[Path, Manifest],
    root: Path,
    texts: Mapping[str, Any],
    chosen: settings.Settings,
    options: argparse.Namespace,
) -> Promotion:
    """The release, with all that is known of it, checked and measured but not written."""
    source_root, manifest = source
    form = chosen.form()
    reason = options.reason or _reason(manifest, options)
    made = release.of(source_root, manifest, version=options.version, form=form, reason=reason)
    release.check(root, made)
    if made.description is None or made.trained_with is None:
        raise CheckpointError(
            f"{manifest.file} does not say what it was trained with: it cannot be measured."
        )
    trained_with = made.trained_with
    record = run_facts.read(source_root, manifest, trained_with["config"])
    rebuilt = network.build(made.description, config=made.trained_with["config"])
    objects.load_weights(rebuilt, made.weights)
    objects.check_finite(rebuilt)
    measured = evaluate.measure(
        rebuilt, trained_with, split=chosen.split, data_root=options.data_root, device=options.device
    )
    recorded = (manifest.metrics if chosen.split == "val" else record.tests()) or {}
    _compare(recorded, measured, chosen.tolerance, form)
    made = _with_card(made, rebuilt, texts, record, measured)
    return Promotion(
        root=root,
        source=source_root / manifest.file,
        release=replace(made, golden_inputs=chosen.golden),
        recorded=recorded,
        measured=measured,
    )


def _reason(manifest: Manifest, options: argparse.Namespace) -> str:
    """What to tell of a release of which nobody said why."""
    kept = "; ".join(manifest.reasons)
    if not options.path.is_dir():
        return kept
    return f"chosen by the rules {Path(options.rules).stem}, kept for: {kept}"


def _with_card(
    made: Release, rebuilt: nn.Module, texts: Mapping[str, Any], record: RunRecord, measured: Measured
) -> Release:
    """The release with what was measured of it as its metrics, and with its card."""
    counts = {
        "parameters": sum(p.numel() for p in rebuilt.parameters()),
        "nonzero": sum(int(torch.count_nonzero(p)) for p in rebuilt.parameters()),
        "sparsity": evaluate.sparsity(rebuilt),
    }
    made = replace(
        made,
        metrics={**made.metrics, **measured.metrics} if measured.split == "val" else made.metrics,
        sparsity=counts["sparsity"],
    )
    of = f"the released weights, {made.form.dtype}, evaluated at the release"
    facts = Facts(
        version=made.version,
        model=made.config,
        weights={**vars(made.form), **counts},
        results=record.results(Result(measured.split, measured.samples, measured.metrics, of)),
        data=record.data((made.trained_with or {}).get("fingerprint") or {}),
        training=record.training(),
        provenance=record.provenance(made.reason),
    )
    filled = card.build(texts, facts)
    return replace(made, card=filled, card_text=card_page.markdown(filled))


def _compare(recorded: Mapping[str, float], measured: Measured, tolerance: float, form: Form) -> None:
    """Raise CheckpointError when what is measured is not what was recorded."""
    for name, value in measured.metrics.items():
        before = recorded.get(name, value)
        if abs(value - before) <= tolerance * max(1.0, abs(before)):  # False when either is NaN
            continue
        costs = "" if form.dtype == "float32" else f" Try dtype=float32: {form.dtype} may cost as much."
        raise CheckpointError(
            f"{name} is {value:.4f}, measured again on the {measured.samples} images of {measured.split}, "
            f"and {before:.4f} was recorded; tolerance={tolerance:g} does not allow that, so nothing is "
            f"released.{costs}"
        )
