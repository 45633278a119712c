"""A sweep: a failed job neither hides nor stops it, and it ends with a table of its jobs."""

import logging
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from checkpointing.errors import CheckpointError
from trainer import record, resume
from trainer.errors import UserError
from trainer.report import peak_rows, read_history, shown

log = logging.getLogger("peakpoint")


def run_job(cfg: DictConfig, directory: Path) -> int:
    """Run one job; whatever goes wrong with it is recorded in its directory and the sweep goes on.

    Raises KeyboardInterrupt when a signal ended the job: it is meant for the whole sweep.
    """
    from trainer.run import run

    overrides = " ".join(HydraConfig.get().overrides.task)
    Console().print(f"job {HydraConfig.get().job.num}: {overrides}", markup=False, highlight=False)
    try:
        code = run(cfg, resume.Plan([]), directory)
    except (UserError, CheckpointError) as error:
        _failed(directory, str(error))
        return 1
    except Exception as error:  # a bug in one job must not end the others
        log.error(traceback.format_exc())
        _failed(directory, f"{type(error).__name__}: {error}; {directory / 'train.log'} has the traceback")
        return 1
    if code > 128:
        raise KeyboardInterrupt
    return code


def _failed(directory: Path, sentence: str) -> None:
    """Note a failure where the table finds it, and in the job's own log, which Hydra leaves empty."""
    log.error("failed: %s", sentence)
    Console(stderr=True).print(f"error: {sentence}", markup=False, highlight=False, soft_wrap=True)
    record.set_status(directory, "failed", error=sentence)


def print_table(folder: Path) -> None:
    """What each job in a sweep's folder came to: its overrides, its state, its peak and its final value."""
    runs = sorted((p.parent for p in folder.glob(f"*/{record.STATUS}")), key=_number)
    if not runs:
        return
    table = Table(title=f"{folder}", title_justify="left")
    for name in ("job", "overrides", "state", "scope", "best epoch", "best", "final", "test"):
        table.add_column(name, overflow="fold")
    for run in runs:
        for cells in _rows(run):
            table.add_row(*map(Text, cells))  # as Text: Rich takes words in brackets for styles
    Console().print(table)


def _number(run: Path) -> tuple[int, str]:
    return (int(run.name) if run.name.isdigit() else -1, run.name)


def _rows(run: Path) -> list[list[str]]:
    """A row a scope: overall, and at the target sparsity when it was reached."""
    status = record.read_json(run / record.STATUS)
    head = [run.name, _overrides(run), status["state"]]
    if status["state"] == "failed":
        return [[*head, status.get("error", ""), "", "", "", ""]]
    try:
        config = record.read_json(run / record.RUN)["config"]
        history = read_history(run)
    except UserError as error:
        return [[*head, str(error), "", "", "", ""]]
    metric, mode = (config["checkpoint"]["monitor"][k] for k in ("metric", "mode"))
    tests = [shown(metric, t["metrics"][metric]) for w, t in history.tests.items() if w == "selected"]
    rows = peak_rows(history.evals, metric, mode, [config["pruning"]["target"]])
    cells = [[r.scope, str(r.best_epoch), shown(metric, r.best), shown(metric, r.final)] for r in rows]
    for cell in cells[:-1]:
        cell.append("")
    cells[-1] += tests or [""]
    return [[*(head if i == 0 else [""] * 3), *cell] for i, cell in enumerate(cells)]


def _overrides(run: Path) -> str:
    path = run / ".hydra" / "overrides.yaml"
    return " ".join(OmegaConf.to_container(OmegaConf.load(path))) if path.exists() else ""  # type: ignore[arg-type]
