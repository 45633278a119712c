"""The record of a run for the model card of its checkpoint, as plain values.

A run's directory has run.json, status.json and metrics.jsonl, its checkpoints the manifests and the journal.
Missing files, as when only the checkpoints were copied, are left out; broken ones are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peakpoint.base.bounded import Absent, read_json
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import journal
from peakpoint.checkpointing.storage.listing import version_of
from peakpoint.checkpointing.storage.manifest import AVERAGE, PRODUCTION, Manifest
from peakpoint.commands.common import run_of
from peakpoint.deployment.inference.form import CARDS
from peakpoint.deployment.release.card import Result
from peakpoint.trainer.reports.history import History, peak_rows, read_rows
from peakpoint.trainer.reports.run_record import METRICS

_OWN = ("hydra.run.dir", "hydra.output_subdir", "resume", "data.root")
"""Overrides of places on a machine, which the card omits."""


@dataclass(frozen=True)
class RunRecord:
    """A checkpoint and the record of its run: `run` is run.json, empty when there is none.

    `history` holds the metrics of the run, None without them; `earlier` is the card of a checkpoint that is a
    release, else empty.
    """

    root: Path
    manifest: Manifest
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    history: History | None
    earlier: Mapping[str, Any]

    def facts(self, fingerprint: Mapping[str, Any], reason: str) -> dict[str, dict[str, Any]]:
        """Return what a card records of the data, the training and the provenance."""
        data = {**fingerprint, "augmentation": _augmentation(self.config.get("data") or {})}
        return {"data": data, "training": self.training(), "provenance": self.provenance(reason)}

    def training(self) -> dict[str, Any]:
        """Return the position in the run, settings, time and hardware, and the peak against the end."""
        if self.earlier:
            return dict(self.earlier.get("training") or {})
        config, run = self.config, self.run
        pruning = config.get("pruning") or {}
        hardware = run.get("hardware") or {}
        return {
            "epoch": self.manifest.epoch,
            "global_step": self.manifest.global_step,
            "epochs": config.get("epochs"),
            "optimizer": _present(config.get("optimizer")),
            "scheduler": _present(config.get("scheduler")),
            "pruning": _present(pruning) if pruning.get("target") else None,
            **{name: config.get(name) for name in ("batch_size", "precision", "seed")},
            "hours": self.hours(),
            "attempts": len(run.get("attempts") or []) or None,
            "hardware": _present({k: hardware.get(k) for k in ("machine", "cpu_count", "gpus", "cuda")}),
            "packages": _present({**(run.get("packages") or {}), "python": run.get("python")}),
            "peaks": self.peaks(),
        }

    def hours(self) -> float | None:
        """Return the hours of training, each attempt up to its last sign of life; None if not recorded."""
        try:
            starts = [datetime.fromisoformat(a["started"]) for a in self.run.get("attempts") or []]
            signs = [
                datetime.fromisoformat(f["time"]) for f in journal.read(self.root) if f["event"] == "saved"
            ]
            signs.append(datetime.fromisoformat(_json(run_of(self.root) / "status.json")["time"]))
        except (KeyError, TypeError, ValueError):
            return None
        if not starts:
            return None
        seconds = 0.0
        for start, until in zip(starts, [*starts[1:], None], strict=True):
            within = [sign for sign in signs if start <= sign and (until is None or sign < until)]
            seconds += (max(within, default=start) - start).total_seconds()
        return round(seconds / 3600, 6)

    def peaks(self) -> list[dict[str, Any]]:
        """Return the best of the run against its end, over all and at its target sparsity."""
        monitor = (self.config.get("checkpoint") or {}).get("monitor")
        if not monitor or not self.history:
            return []
        target = (self.config.get("pruning") or {}).get("target") or 0
        rows = peak_rows(self.history.evals, monitor["metric"], monitor["mode"], [target])
        return [{"metric": monitor["metric"], **vars(row)} for row in rows]

    def tested(self) -> Result | None:
        """Return the result on the test set, None unless the run evaluated it with these weights."""
        # An average has the step of one of its networks.
        tests = self.history.tests.values() if self.history and AVERAGE not in self.manifest.tags else ()
        found = next((t for t in tests if t["step"] == self.manifest.global_step), None)
        if found is None:
            return None
        return Result("test", found["samples"], found["metrics"], "the checkpoint, at the end of the run")

    def results(self, measured: Result) -> list[Result]:
        """Return the results measured for the release, then the recorded ones."""
        found = [measured]
        if self.earlier:
            return found
        if (tested := self.tested()) and measured.split != "test":
            found.append(tested)
        if measured.split != "val" and self.manifest.metrics:
            found.append(Result("val", None, dict(self.manifest.metrics), "the checkpoint, in training"))
        return found

    def provenance(self, reason: str) -> dict[str, Any]:
        """Return the run, the file and the code of the release, and its reason."""
        m, diff = self.manifest, self.run.get("git_diff")
        attempts = self.run.get("attempts") or [{}]
        overrides = [str(each) for each in attempts[-1].get("overrides") or []]
        overrides = [each for each in overrides if each.lstrip("+~").split("=")[0] not in _OWN]
        found: dict[str, Any] = {
            "reason": reason,
            "run": m.run,
            "file": m.file,
            "digest": m.digest,
            "kept_for": "; ".join(m.reasons),
            "recorded": dict(m.metrics),
            "git_commit": m.git_commit,
            "uncommitted_changes": None if diff is None else bool(diff),
            "command": " ".join(["python train.py", *overrides]) if self.run else None,
        }
        if self.earlier:
            found |= {"released_before_as": version_of(m), "before": self.earlier.get("provenance")}
        return {name: value for name, value in found.items() if value not in (None, "", {})}


def read(root: Path, manifest: Manifest, config: Mapping[str, Any]) -> RunRecord:
    """Return the record of a verified checkpoint. Raises PeakpointError when a file of it is broken.

    The record of another run, as beside copied checkpoints, is ignored.
    """
    if manifest.tier == PRODUCTION:
        return RunRecord(root, manifest, config, {}, None, card_of(root, manifest))
    folder = run_of(root)
    run = _json(folder / "run.json")
    if run.get("run") != manifest.run:
        return RunRecord(root, manifest, config, {}, None, {})
    history = read_rows(folder) if (folder / METRICS).exists() else None
    return RunRecord(root, manifest, config, run, history, {})


def card_of(root: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the model card of a verified release."""
    return _json(root / CARDS / f"v{version_of(manifest)}.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except Absent:
        return {}
    except CheckpointError as error:
        raise CheckpointError(f"{error} Put it back, or move it away.") from None


def _present(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {str(k): v for k, v in (values or {}).items() if v not in (None, [], "")}


def _augmentation(data: Mapping[str, Any]) -> str:
    found = []
    if padding := data.get("crop_padding"):
        found.append(f"random crops after a padding of {padding}")
    if data.get("flip"):
        found.append("horizontal flips")
    if size := data.get("cutout"):
        found.append(f"cutout of {size} pixels")
    return ", ".join(found) or "none"
