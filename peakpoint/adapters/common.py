"""Code shared by the adapters: plain state, measured sparsity, and the manager of a training."""

import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.checkpointing.events import EvalEnd, Event
from peakpoint.checkpointing.manager import Manager, Options
from peakpoint.checkpointing.policy import Policy
from peakpoint.checkpointing.state.objects import git_commit
from peakpoint.checkpointing.storage import listing, locate, quarantine
from peakpoint.library.recorder import Opened, opened
from peakpoint.optimizers import parameters

log = logging.getLogger("peakpoint")

ON_ERROR = ("warn", "stop")
"""Whether training goes on after a save that failed, or ends."""


def plain(value: Any) -> Any:
    """Return a framework's nested state in plain types where that loses nothing; a save refuses the rest."""
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Path):
        return str(value)
    return value.data if isinstance(value, nn.Parameter) else value


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are single numbers."""
    found = {}
    for name, value in metrics.items():
        if isinstance(value, torch.Tensor | np.generic):
            if value.size != 1 if isinstance(value, np.generic) else value.numel() != 1:
                continue
            found[str(name)] = float(value)
        elif isinstance(value, int | float):
            found[str(name)] = float(value)
    return found


class Zeros:
    """The measured zeros among a network's matrices and kernels, as its layers use them, and among all."""

    def __init__(self) -> None:
        self._before: float | None = None
        self.version = 0

    def measured(self, epoch: int, step: int, metrics: dict[str, float], model: nn.Module) -> EvalEnd:
        """Return an evaluation of the network; its mask version grows when the number of zeros changed.

        Waits for the device.
        """
        found = parameters.used(model)
        zeros = parameters.count(found, [one.value.dim() > 1 for one in found])
        if self._before is None and zeros.prunable > 0:
            log.info(
                "sparsity %.2f%% of the matrices and kernels, %.2f%% of all %d parameters",
                100 * zeros.prunable, 100 * zeros.overall, zeros.overall_count,
            )  # fmt: skip
        if self._before not in (None, zeros.prunable):
            self.version += 1
        self._before = zeros.prunable
        return EvalEnd(epoch, step, metrics, zeros.prunable, self.version, zeros.overall)


def _checked(policies: object) -> dict[str, Policy]:
    """Return policies by name. Raises CheckpointError for anything else."""
    if not isinstance(policies, Mapping):
        raise CheckpointError(f"policies is {policies!r}: give a dict of policies by name.")
    for name, policy in policies.items():
        if not isinstance(name, str):  # a manifest holds it
            raise CheckpointError(f"policies has the name {name!r}: name each policy by a text.")
        if not isinstance(policy, Policy):
            raise CheckpointError(
                f"The policy {name} is {policy!r}: give an object of a class of "
                "peakpoint.checkpointing.policies, or derived from Policy."
            )
    return dict(policies)


def newest(root: str | Path) -> Path | None:
    """Return the newest checkpoint under a directory that verifies, or None; damaged ones are passed over.

    Where this process is the one writer they go to quarantine.
    """
    root = given.path(root, "root")
    found = locate.newest_verified(root, listing.run_id(root))
    for file, reason in found.skipped:
        quarantine.pass_over(root, file, reason)
    return root / found.manifest.file if found.manifest else None


_WRITERS: "weakref.WeakValueDictionary[Path, Adapter]" = weakref.WeakValueDictionary()
"""The callback that writes to each directory: a second one would delete and overwrite files of the first."""


class Adapter:
    """Base of the callbacks: a directory, its policies, and the manager of a training.

    Saves what `policies` ask for, under `root`; their Stop ends the training. on_error is `warn` or `stop`;
    compress packs zeros away, exactly. Raises CheckpointError for arguments of other types.
    """

    def __init__(
        self,
        root: str | Path,
        policies: Mapping[str, Policy],
        *,
        on_error: str = "warn",
        compress: bool = False,
    ) -> None:
        self.root = given.path(root, "root").absolute()  # the working directory may change
        self.policies = _checked(policies)
        if on_error not in ON_ERROR:
            raise CheckpointError(f"on_error={on_error!r} is not a choice: it must be warn or stop.")
        self._on_error, self._compress = on_error, given.flag("compress", compress)
        self._opened: Opened | None = None
        self._manager: Manager | None = None
        self._zeros = Zeros()
        self._waiting: list[Event] = []

    def _open(self, gather: Callable[[], dict[str, Any]], resumed_from: str | None) -> Manager:
        """Lock the directory and return its manager. Raises CheckpointError.

        A callback that has it open, as one whose training failed, is closed first.
        """
        key = self.root.resolve()
        if (other := _WRITERS.get(key)) is not None:
            other.close()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.root} cannot be made: {os_reason(error)}.") from None
        options = Options(
            background=True,
            on_error=self._on_error,
            compress=self._compress,
            git_commit=git_commit(),
            resumed_from=resumed_from,
        )
        self._opened, self._zeros = opened(self.root), Zeros()
        self._manager = Manager(self._opened.store, self.policies, gather, options=options)
        _WRITERS[key] = self
        return self._manager

    def _stops(self, *events: Event) -> bool:
        """Save what the policies ask for at these events of one moment; returns whether one says Stop."""
        if self._manager is None:
            raise CheckpointError(
                f"{self.root} was opened by another callback: give each training and callback its own."
            )
        stop = self._manager.handle(*events)
        if stop:
            log.info("stopping: %s", stop.reason)
        return stop is not None

    def close(self) -> None:
        """Finish the save in flight, and let other processes write; for a training that an error ended."""
        if self._manager is not None:
            self._manager.close()
            self._manager = self._opened = None
