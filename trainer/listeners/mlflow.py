"""MLflow: the numbers of a run in an experiment, in a database file or on a tracking server."""

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peakpoint.base.registry import register
from peakpoint.checkpointing.state.differences import flat
from peakpoint.trainer.listeners.events import Attempt, Logger
from peakpoint.trainer.listeners.tracking import Tracker, check_package

STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
"""The state of a run -> MLflow's word."""
LONGEST = 6000
"""Characters of a parameter in MLflow."""


@register("logger", "mlflow")
@dataclass(kw_only=True)
class MlflowLogger(Logger):
    """A run of MLflow."""

    experiment: str
    name: str | None
    tracking_uri: str
    timeout_s: int

    def check(self, directory: Path) -> None:  # noqa: ARG002
        """Raise UserError where the package is missing, or what it needs for a database."""
        _quiet()
        check_package("mlflow", "mlflow.tracking", "sqlalchemy", "alembic")

    def build(self, attempt: Attempt) -> "Mlflow":
        """Return the listener of an attempt."""
        return Mlflow(self, attempt)


def _quiet() -> None:
    """Keep MLflow from reporting its own use over the network; read when it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


class Mlflow(Tracker):
    """Writes to one run of MLflow."""

    def __init__(self, settings: MlflowLogger, attempt: Attempt) -> None:
        super().__init__("mlflow", attempt)
        self._settings = settings
        self._client: Any = None
        self._run = ""

    def open(
        self,
        known: str | None,
        sent: dict[str, int],  # noqa: ARG002 (the store knows)
        config: dict[str, Any],
    ) -> tuple[str, dict[str, int]]:
        """Begin, or go on with the run of an id; returns the id and its last steps.

        A run that is not there is begun anew.
        """
        given = self._settings
        _quiet()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(given.timeout_s))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # training waits meanwhile
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(given.tracking_uri)
        parameters = {key: str(value)[:LONGEST] for key, value in flat(config).items()}
        found = self._found(known)
        if found is not None:
            self._run = found.info.run_id
            self._client.update_run(self._run, status="RUNNING")
            before = found.data.params
            for key, value in parameters.items():
                if before.get(key) != value:  # a parameter cannot be changed there
                    self._client.set_tag(self._run, f"resumed_with.{key}", value)
            return self._run, self._last_steps(found.data.metrics)
        tags = {"peakpoint.run": self.attempt.run, "peakpoint.directory": str(self.attempt.directory)}
        new = self._client.create_run(self._experiment(), run_name=given.name, tags=tags)
        self._run = new.info.run_id
        self._client.log_batch(self._run, params=[Param(key, value) for key, value in parameters.items()])
        return self._run, {}

    def _last_steps(self, names: Iterable[str]) -> dict[str, int]:
        """Return the last step of each group, whose numbers are written together; each has a loss."""
        return {
            name.removesuffix("/loss"): max(m.step for m in self._client.get_metric_history(self._run, name))
            for name in names
            if name.endswith("/loss")
        }

    def _found(self, known: str | None) -> Any:
        """Return the run of an id, or None where the store has none."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(known) if known else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _experiment(self) -> str:
        """Return the id of the experiment, which is made where there is none."""
        name = self._settings.experiment
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def send(self, step: int, values: dict[str, float]) -> None:
        """Write numbers of a step."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self._run, metrics=[Metric(n, v, now, step) for n, v in values.items()])

    def end(self, state: str) -> None:
        """End with a state."""
        self._client.set_terminated(self._run, STATUS[state])
