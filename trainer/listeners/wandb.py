"""Weights & Biases: the numbers of a run in a project there, or in files to be uploaded later."""

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from peakpoint.base.registry import register
from peakpoint.trainer.listeners.events import Attempt, Logger
from peakpoint.trainer.listeners.tracking import Tracker, check_package


class Mode(Enum):
    """Where the numbers go."""

    offline = "offline"
    online = "online"


@register("logger", "wandb")
@dataclass(kw_only=True)
class WandbLogger(Logger):
    """A run of Weights & Biases; its files lie in the folder `wandb` of the run."""

    project: str
    entity: str | None
    name: str | None
    mode: Mode
    timeout_s: int

    def check(self, directory: Path) -> None:  # noqa: ARG002
        """Raise UserError where the package is missing."""
        check_package("wandb", "wandb.sdk")

    def build(self, attempt: Attempt) -> "Wandb":
        """Return the listener of an attempt."""
        return Wandb(self, attempt)


class Wandb(Tracker):
    """Writes to one run of Weights & Biases, whose id is that of the run's record."""

    def __init__(self, settings: WandbLogger, attempt: Attempt) -> None:
        super().__init__("wandb", attempt)
        self._settings = settings
        self._run: Any = None

    def open(
        self, known: str | None, sent: dict[str, int], config: dict[str, Any]
    ) -> tuple[str, dict[str, int]]:
        """Begin, or go on with the run of an id; returns the id, and the steps that are known to be there."""
        if self._settings.mode is Mode.offline:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # which would ask for the network
        import wandb

        given = self._settings
        self._run = wandb.init(
            project=given.project,
            entity=given.entity,
            name=given.name,
            id=known or self.attempt.run,
            dir=self.attempt.directory,
            mode=given.mode.value,
            resume="allow",
            reinit="create_new",  # and not a run of this process that could not be finished
            settings=wandb.Settings(
                console="off",  # train.log has the lines
                silent=True,
                disable_git=True,  # a remote's URL may hold a token
                disable_code=True,
                login_timeout=given.timeout_s,
                init_timeout=given.timeout_s,
            ),
        )
        self._run.config.update(config, allow_val_change=True)
        found = str(self._run.id)
        return found, sent if found == known else {}

    def send(self, step: int, values: dict[str, float]) -> None:
        """Write numbers of a step; those of an earlier step go to the summary, as steps only grow there."""
        if step < self._run.step:
            self._run.summary.update(values)
        else:
            self._run.log(values, step=step)

    def end(self, state: str) -> None:
        """End with a state."""
        self._run.summary["state"] = state
        self._run.finish(exit_code=0 if state == "finished" else 1)
