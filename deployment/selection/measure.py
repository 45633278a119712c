"""Measurements that need the file of a checkpoint: soundness, speed, size and metrics."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from peakpoint.base.errors import CheckpointError, UnregisteredError
from peakpoint.checkpointing.policies.sparsity import SLACK
from peakpoint.checkpointing.state import objects
from peakpoint.checkpointing.storage import store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.inference import evaluate, golden, network, timing
from peakpoint.deployment.inference import weights as forms
from peakpoint.deployment.inference.evaluate import Measured
from peakpoint.deployment.inference.network import Description
from peakpoint.deployment.selection.rules import Latency


class Refused(CheckpointError):  # noqa: N818 (the name says what happened)
    """A checkpoint contradicts its manifest; other checkpoints are not affected."""


class Appraiser:
    """Verifies and measures checkpoints; the data of a run are kept for its next checkpoint."""

    def __init__(
        self, data_root: str | Path | None = None, device: str = "cpu", other_data: Path | None = None
    ) -> None:
        self._data_root, self._other_data = data_root, other_data
        self.device = evaluate.usable(device)
        self._data: dict[str, Any] = {}

    @property
    def own_data(self) -> bool:
        """Whether a checkpoint is measured on the data of its run."""
        return self._other_data is None

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

    def speed(self, root: Path, manifest: Manifest, wanted: Iterable[str], how: Latency) -> dict[str, float]:
        """Return those of latency_ms and weights_bytes that are wanted. Raises Refused."""
        weights, description = self.network(root, manifest)
        found = {}
        if "weights_bytes" in wanted:
            found["weights_bytes"] = float(forms.packed_bytes(weights.state_dict()))
        if "latency_ms" in wanted:
            images = network.prepare(golden.inputs(description, how.batch).to(self.device), description)
            timed = timing.measure(
                {"": (weights, images)},
                rounds=how.repeats,
                warm=how.warmup,
                synchronize=timing.waiting_for(self.device),
            )
            found["latency_ms"] = 1000 * timed[""].seconds.median
        return found

    def samples(self, root: Path, manifest: Manifest) -> int | None:
        """Return the number of images behind the recorded metrics, None if unknown. Raises Refused."""
        self.sound(root, manifest)
        try:
            return int(evaluate.trained_with(root, manifest)["fingerprint"]["val_size"])
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None

    def measure(self, root: Path, manifest: Manifest, split: str = "val") -> Measured:
        """Return metrics and sparsity of a checkpoint, on the other data if given, else on those of its run.

        Raises Refused for the checkpoint, and CheckpointError for data that cannot be read.
        """
        weights, description = self.network(root, manifest)
        try:
            facts = evaluate.trained_with(root, manifest)
        except CheckpointError as error:
            raise Refused(str(error)) from None
        if self._other_data is not None:
            found = evaluate.measure_other(weights, description, facts, self._other_data, device=self.device)
        else:
            data = self._read(facts)
            found = evaluate.measure(weights, facts, split=split, data=data, device=self.device)
        return replace(found, metrics={**found.metrics, "sparsity": evaluate.sparsity(weights)})

    def _read(self, facts: Mapping[str, Any]) -> Any:
        config = facts["config"]
        key = repr(
            [facts["fingerprint"], config.get("data"), config.get("seed"), config.get("eval_batch_size")]
        )
        if key not in self._data:
            self._data.clear()  # one at a time in memory: the candidates of a run come together
            self._data[key] = evaluate.data_of(facts, data_root=self._data_root, device=self.device)
        return self._data[key]

    def prove(self, root: Path, manifest: Manifest, names: Iterable[str], tolerance: float) -> Measured:
        """Measure a checkpoint again and compare the metrics `names`, or all if none of them is measured.

        Raises Refused when a metric differs from the recorded one by more than `tolerance` (times that value
        where it is above 1), or when the sparsity differs.
        """
        measured = self.measure(root, manifest)
        recorded = {name: v for name, v in manifest.metrics.items() if name in measured.metrics}
        compared = {name: v for name, v in recorded.items() if name in names} or recorded
        if not compared:
            raise Refused("it has recorded no metric that can be measured again")
        wrong = [
            f"{name} was recorded as {value:.6g}, and is {measured.metrics[name]:.6g}"
            for name, value in compared.items()
            if not abs(measured.metrics[name] - value) <= tolerance * max(1.0, abs(value))
        ]
        sparsity = manifest.sparsity
        if sparsity is not None and not math.isclose(sparsity, measured.metrics["sparsity"], abs_tol=SLACK):
            wrong.append(
                f"sparsity was recorded as {sparsity:.6g}, and is {measured.metrics['sparsity']:.6g}"
            )
        if wrong:
            raise Refused(f"measured again on {measured.samples} images: {'; '.join(wrong)}")
        return measured
