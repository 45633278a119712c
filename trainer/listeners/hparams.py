"""The row of a run in the table HPARAMS of TensorBoard: its settings, and what it came to."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peakpoint.base.lock import present
from peakpoint.checkpointing.state.differences import flat
from peakpoint.trainer.config.hydra_overrides import under
from peakpoint.trainer.listeners.tracking import without_secrets
from peakpoint.trainer.reports.study import read_result
from peakpoint.trainer.resume.refusals import FREE

FILE = "events.out.tfevents.0.hparams"
"""Its file, which sorts before those of the curves: TensorBoard may follow the last file alone."""
RESULTS = {"best": "overall", "best_at_target": "at_target", "final": "final", "test": "test"}
"""A result of the monitored metric -> its name in the table of a sweep."""
STATUS = {"finished": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}
"""The state of a run -> TensorBoard's word; one that may go on has none."""


def settings(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Return the settings that decide about a run by their keys, as TensorBoard takes them."""
    return {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in flat(without_secrets(config)).items()
        if not under(key, FREE) and value not in (None, {}, [])
    }


def results(run: Path) -> dict[str, float]:
    """Return what a run came to, as far as metrics.jsonl knows: the numbers of a sweep's table."""
    found = read_result(present(run, or_named=True))
    values = {f"{name}_{found.metric}": found.measured(field) for name, field in RESULTS.items()}
    values["sparsity"] = found.measured("sparsity")
    return {name: value for name, value in values.items() if value is not None}


def started(config: Mapping[str, Any]) -> Any:
    """Return the summary that begins the row, which is named by the folder that it lies in."""
    from tensorboard.plugins.hparams import metadata  # type: ignore[import-untyped]
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo  # type: ignore[import-untyped]

    info = SessionStartInfo(start_time_secs=time.time())
    for key, value in settings(config).items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(info.hparams[key], kind, value)
    return _summary(metadata.SESSION_START_INFO_TAG, session_start_info=info)


def ended(state: str) -> Any:
    """Return the summary that ends the row with a state of STATUS."""
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo

    info = SessionEndInfo(status=api_pb2.Status.Value(STATUS[state]), end_time_secs=time.time())
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=info)


def _summary(tag: str, **fields: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    kind = metadata.create_summary_metadata(HParamsPluginData(**fields))
    return Summary(value=[Summary.Value(tag=tag, metadata=kind, tensor=metadata.NULL_TENSOR)])
