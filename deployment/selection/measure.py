"""Measurements that need the file of a checkpoint: soundness, speed, size and metrics."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peakpoint.base.errors import CheckpointError, UnregisteredError
from peakpoint.checkpointing.policies.sparsity import SLACK
from peakpoint.checkpointing.state import objects
from peakpoint.checkpointing.storage import store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.inference import evaluate, golden, network, timing
from peakpoint.deployment.inference.evaluate import Measured
from peakpoint.deployment.inference.network import Description
from peakpoint.deployment.selection.rules import Latency, Rules
from peakpoint.optimizers import scope
from peakpoint.optimizers.parameters import zeros


class Refused(CheckpointError):  # noqa: N818 (the name says what happened)
    """A checkpoint contradicts its manifest; other checkpoints are not affected."""


class RunData:
    """The data of runs, read once for the networks of one run, which come together."""

    def __init__(self, root: str | Path | None, device: torch.device) -> None:
        self._root, self._device = root, device
        self._key = ""
        self._read: Any = None

    def of(self, trained_with: Mapping[str, Any]) -> Any:
        """Return the data of a run from `evaluate.trained_with`. Raises CheckpointError."""
        config = trained_with["config"]
        read_by = [config.get(name) for name in ("data", "seed", "eval_batch_size")]
        key = repr([trained_with["fingerprint"], *read_by])
        if key != self._key:
            self._key, self._read = "", None  # one at a time in memory
            self._read = evaluate.data_of(trained_with, data_root=self._root, device=self._device)
            self._key = key
        return self._read


def differences(recorded: Mapping[str, float], measured: Mapping[str, float], tolerance: float) -> list[str]:
    """Return a sentence for each metric that differs from the recorded one, or is NaN.

    `tolerance` is that of values up to 1, and a fraction of larger ones.
    """
    return [
        f"{name} was recorded as {value:.6g}, and is {measured[name]:.6g}"
        for name, value in recorded.items()
        if name in measured and not abs(measured[name] - value) <= tolerance * max(1.0, abs(value))
    ]


class Appraiser:
    """Verifies and measures checkpoints, on `other_data` where they are given, else on those of their run."""

    def __init__(
        self, data_root: str | Path | None = None, device: str = "cpu", other_data: Path | None = None
    ) -> None:
        self.device, self.other_data = evaluate.usable(device), other_data
        self._data = RunData(data_root, self.device)

    def sound(self, root: Path, manifest: Manifest) -> None:
        """Raise Refused unless the file verifies."""
        try:
            store.verify(root, manifest)
        except CheckpointError as error:
            raise Refused(str(error)) from None

    def network(self, root: Path, manifest: Manifest) -> tuple[nn.Module, Description]:
        """Return the verified network on the device, and its description.

        Raises Refused, or UnregisteredError when it is not registered, which is no fault of the checkpoint.
        """
        self.sound(root, manifest)
        try:
            rebuilt, description = network.rebuilt(root, manifest)
            objects.move(rebuilt, self.device)
        except UnregisteredError:
            raise
        except CheckpointError as error:
            raise Refused(str(error)) from None
        return rebuilt, description

    def speed(self, root: Path, manifest: Manifest, wanted: set[str], how: Latency) -> dict[str, float]:
        """Return those of latency_ms and weights_bytes that are wanted. Raises Refused."""
        if not wanted:
            return {}
        weights, description = self.network(root, manifest)
        found = {}
        if "weights_bytes" in wanted:
            found["weights_bytes"] = float(objects.packed_bytes(weights.state_dict()))
        if "latency_ms" in wanted:
            images = network.prepare(golden.inputs(description, how.batch).to(self.device), description)
            calls = [(weights, images)]
            (timed,) = timing.measure(calls, rounds=how.repeats, device=self.device, warm=how.warmup)
            found["latency_ms"] = 1000 * timed.seconds.median
        return found

    def samples(self, root: Path, manifest: Manifest) -> int | None:
        """Return the number of images behind the recorded metrics of a sound checkpoint, None if unknown."""
        try:
            return int(evaluate.trained_with(root, manifest)["fingerprint"]["val_size"])
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None

    def measure(self, root: Path, manifest: Manifest) -> Measured:
        """Return metrics and sparsity of a checkpoint.

        Raises Refused for the checkpoint, and CheckpointError for data that cannot be read.
        """
        weights, description = self.network(root, manifest)
        try:
            facts = evaluate.trained_with(root, manifest)
        except CheckpointError as error:
            raise Refused(str(error)) from None
        if self.other_data is not None:
            found = evaluate.measure_other(weights, description, facts, self.other_data, device=self.device)
        else:
            found = evaluate.measure(weights, facts, data=self._data.of(facts), device=self.device)
        sparsity = zeros(weights, scope.recorded(facts["config"])).prunable
        return replace(found, metrics={**found.metrics, "sparsity": sparsity})

    def prove(self, root: Path, manifest: Manifest, rules: Rules) -> Measured:
        """Measure a checkpoint again, and compare the metrics that rules name, or all if none is measured.

        Raises Refused when a metric differs from the recorded one by more than their tolerance, as for
        `differences`, or when the sparsity differs.
        """
        measured = self.measure(root, manifest)
        recorded = {name: v for name, v in manifest.metrics.items() if name in measured.metrics}
        if not recorded:
            raise Refused("it has recorded no metric that can be measured again")
        named = {name: value for name, value in recorded.items() if name in rules.metrics}
        wrong = differences(named or recorded, measured.metrics, rules.verify.tolerance)
        if manifest.sparsity is not None:
            wrong += differences({"sparsity": manifest.sparsity}, measured.metrics, SLACK)
        if wrong:
            raise Refused(f"measured again on {measured.samples} images: {'; '.join(wrong)}")
        return measured
