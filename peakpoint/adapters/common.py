"""What the adapters share: plain state, measured sparsity, the manager of a directory."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.manager import Manager, Options
from peakpoint.checkpointing.policy import Policy
from peakpoint.checkpointing.state.objects import git_commit
from peakpoint.checkpointing.storage import listing, locate, store
from peakpoint.library.recorder import Opened, opened
from peakpoint.optimizers import parameters

log = logging.getLogger("peakpoint")


def plain(value: Any) -> Any:
    """A framework's nested state in plain types, where that loses nothing; the rest is left to be refused."""
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
    """The metrics that are single numbers."""
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
        """An evaluation of the network as it is; its mask version grows when the number of zeros changed.

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


def newest(root: str | Path) -> Path | None:
    """The newest checkpoint under a directory that verifies, or None; damaged ones are passed over.

    Where this process is the one writer they go to quarantine.
    """
    root = given.path(root, "root")
    found = store.newest_verified(root, listing.run_id(root))
    for file, reason in found.skipped:
        locate.pass_over(root, file, reason)
    return root / found.manifest.file if found.manifest else None


@dataclass(frozen=True, kw_only=True)
class Writing:
    """on_error: `warn` or `stop`; compress: pack zeros away."""

    on_error: str
    compress: bool


class Run:
    """A directory opened for a fit: its lock, its manager and the policies' counters."""

    def __init__(
        self,
        root: Path,
        policies: Mapping[str, Policy],
        gather: Callable[[], dict[str, Any]],
        *,
        writing: Writing,
        resumed_from: str | None,
    ) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{root} cannot be made: {os_reason(error)}.") from None
        self._opened: Opened | None = opened(root)
        options = Options(
            background=True,
            on_error=writing.on_error,
            compress=writing.compress,
            git_commit=git_commit(),
            resumed_from=resumed_from,
        )
        self.manager = Manager(self._opened.store, policies, gather, options=options)
        self.zeros = Zeros()

    def close(self) -> None:
        """Finish the save in flight, and let other processes write."""
        if self._opened is not None:
            self.manager.close()
            self._opened = None
