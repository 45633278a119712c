"""The record of a run: configuration, attempts and status, enough to repeat it."""

import importlib.metadata
import logging
import math
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import bounded, registry, text
from peakpoint.base.errors import CheckpointError, PeakpointError, UserError, os_reason
from peakpoint.base.files import write_atomic
from peakpoint.base.lock import present
from peakpoint.base.text import readable, utc_now
from peakpoint.checkpointing.remote import urls
from peakpoint.checkpointing.remote.layout import safe
from peakpoint.trainer.config.hydra_overrides import current_config, flat

log = logging.getLogger("peakpoint")
file_only = logging.getLogger("train.log")  # for what the console shows otherwise

HYDRA = ".hydra"
RUN, STATUS, METRICS = "run.json", "status.json", "metrics.jsonl"
MACS = "macs"
"""The entry of run.json with the multiply-accumulates for an image of each weight of the dense network."""
CONFUSION = "confusion.json"
"""The labels and predictions of the test set, by the network that was tested last: that selected, if any."""
NOW = "config_now"
"""The entry of run.json with the configuration of the latest attempt, where an earlier one was another."""
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "tensorboard", "peakpoint")
STATES = ("running", "finished", "interrupted", "failed")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises UserError, which names a file that is missing or broken."""
    try:
        return bounded.read_json(path)
    except CheckpointError as error:
        raise UserError(str(error)) from None


def read_run(run: Path) -> dict[str, Any]:
    """Return run.json of a run directory. Raises UserError when it is missing, broken, or of something else.

    It holds at least one of `attempts`, each with `overrides`; what it has beside has the type that is
    written here.
    """
    path = run / RUN
    found = read_json(path)
    attempts = found.get("attempts")
    if not attempts:
        raise UserError(f"{path} records no attempt, so it is not that of a run.")
    if wrong := next(_wrong(found), None):
        raise UserError(f"{path} is not the record of a run: {wrong} is not what is written there.")
    return found


def _wrong(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of values in run.json that have another type than the ones that are written."""
    attempts = found["attempts"]
    if not isinstance(attempts, list) or not all(isinstance(each, dict) for each in attempts):
        yield "attempts"
        return
    for name in ("config", NOW, "data"):
        if not isinstance(found.get(name, {}), dict):
            yield name
    if not (isinstance(name := found.get("run", "run"), str) and safe(name)):
        yield "run"
    for each in attempts:
        overrides = each.get("overrides")
        if not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides):
            yield "overrides"
        if not isinstance(each.get("choices", {}), dict):
            yield "choices"
        if not isinstance(each.get("started", ""), str):
            yield "started"
        if not isinstance(each.get("resumed_from"), str | None):
            yield "resumed_from"
        hydra = each.get("hydra", "")
        if not isinstance(hydra, str) or Path(hydra).is_absolute() or ".." in Path(hydra).parts:
            yield "hydra"


def read_status(run: Path) -> dict[str, Any]:
    """Return status.json of a run directory. Raises UserError when it is missing or of something else.

    `state` is one of STATES; a finished one has `epoch` and `step`, numbers, and `reason`, a text.
    """
    found = read_json(run / STATUS)
    wanted: dict[str, type] = {"epoch": int, "step": int, "reason": str}
    done = found.get("state") == "finished"
    if found.get("state") not in STATES or (
        done and not all(isinstance(found.get(name), kind) for name, kind in wanted.items())
    ):
        raise UserError(f"{run / STATUS} is not the status of a run: it was written by something else.")
    return found


def number(status: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a status; None where it has none, or something else."""
    value: Any = status.get(name)
    return value if type(value) in (int, float) and math.isfinite(value) else None


def saved_config(run: Path, attempt: Mapping[str, Any]) -> DictConfig:
    """Return the configuration of an attempt with current keys, not interpolated. Raises UserError."""
    path = run / attempt.get("hydra", "") / "config.yaml"
    try:
        found = OmegaConf.create(bounded.yaml_text(path))
    except CheckpointError as error:
        raise UserError(f"{error} It is needed to resume.") from None
    except (*bounded.YAML_ERRORS, OmegaConfBaseException) as error:
        raise UserError(f"{bounded.not_yaml(path, error)} It is needed to resume.") from None
    if not isinstance(found, DictConfig):
        raise UserError(f"{path} holds no keys with values. It is needed to resume.")
    values: Any = OmegaConf.to_container(found, resolve=False)
    return OmegaConf.create(current_config(values))


def watched(run: Path) -> tuple[str, str, list[float]]:
    """Return the metric and its mode that the latest attempt of a run watched, and its target sparsities.

    The first target is that of its pruning. Raises UserError when the record does not say.
    """
    found = read_json(run / RUN)
    config: Any = found.get(NOW, found.get("config"))
    try:
        monitor, targets = config["checkpoint"]["monitor"], [float(config["pruning"]["target"])]
        for policy in config["checkpoint"]["policy"].values():
            targets += map(float, policy.get("targets", ()))
        metric, mode = monitor["metric"], monitor["mode"]
        if not isinstance(metric, str) or mode not in ("max", "min"):
            raise ValueError(metric)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{run / RUN} does not say what its run watched.") from None
    return metric, mode, targets


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file at once."""
    write_atomic(path, text.json_text(value, indent=2) + "\n")


def typed(kind: str = "task") -> list[str]:
    """Return the overrides of this command line, of kind `task` or `hydra`, as they were typed.

    Hydra's own list resolves an interpolation when it is read, and a variable of the environment would be
    recorded with its value.
    """
    found: Any = OmegaConf.to_container(HydraConfig.instance().cfg.hydra.overrides, resolve=False)  # type: ignore[union-attr]
    return list(found[kind])


def attempt(
    number: int, overrides: list[str], choices: Mapping[str, Any], resumed_from: str | None
) -> dict[str, Any]:
    """Return the record of one start: what was typed and chosen, and the checkpoint that it resumed from."""
    return {
        "number": number,
        "started": utc_now(),
        "command": shlex.join([sys.executable, *sys.argv]),
        "directory": str(Path.cwd()),
        "overrides": overrides,
        "choices": {group: choice for group, choice in choices.items() if not group.startswith("hydra")},
        "resumed_from": resumed_from,
        **holder(),
        "git_commit": code()["git_commit"],
    }


def holder() -> dict[str, Any]:
    """Return who is writing: this process."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def refuse_passwords(cfg: DictConfig) -> None:
    """Raise CheckpointError for a value that holds the password of a URL; what it refers to is not read."""
    urls.refuse_passwords(f"{key}={value}" for key, value in flat(cfg).items())


def save_config(run: Path, cfg: DictConfig) -> str:
    """Save the configuration of an attempt, as Hydra would; returns where: `.hydra` or `.hydra/resume-NNN`.

    Only who owns the run calls this; what is there already is not written over. Raises CheckpointError for
    a password.
    """
    refuse_passwords(cfg)
    name, number = HYDRA, 0
    while True:
        try:
            (run / name).mkdir()
            break
        except FileExistsError:
            number += 1
            name = f"{HYDRA}/resume-{number:03d}"
    hydra = HydraConfig.instance().cfg
    parts = {"config": cfg, "hydra": hydra, "overrides": OmegaConf.create(typed())}
    try:
        for part, values in parts.items():
            write_atomic(run / name / f"{part}.yaml", OmegaConf.to_yaml(values))
    except OSError:
        shutil.rmtree(run / name, ignore_errors=True)
        raise
    return name


def set_status(run: Path, state: str, **facts: Any) -> None:
    """Replace status.json. States: running, finished, interrupted, failed."""
    write_json(present(run / STATUS), {"state": state, "time": utc_now(), **readable(facts)})


def sentence(error: BaseException) -> str:
    """Return what ended a run, as a sentence; an unexpected error with its type and its plugin."""
    if isinstance(error, PeakpointError):
        return str(error)
    return f"{type(error).__name__}: {error} {registry.raised_in(error)}".rstrip()


def log_failure(error: BaseException) -> None:
    """Log to train.log what ended a run; an unexpected error with its traceback."""
    expected = isinstance(error, PeakpointError | KeyboardInterrupt)
    file_only.error("failed: %s", sentence(error), exc_info=None if expected else error)


def end(run: Path, state: str, **facts: Any) -> None:
    """Replace status.json at the end of a run; a failed write is a warning and no failure of the run."""
    try:
        set_status(run, state, **facts)
    except OSError as error:
        log.warning(
            "%s could not be written: %s. It does not say that the run is %s.",
            run / STATUS,
            os_reason(error),
            state,
        )


def git(*arguments: str) -> str | None:
    """Return the output of git in the code's directory, or None without git or a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def code() -> dict[str, Any]:
    """Return the commit of the code, and the diff of what is not committed."""
    commit = git("rev-parse", "HEAD")
    return {
        "git_commit": commit.strip() if commit else None,
        "git_diff": git("diff", "HEAD") if commit else None,
    }


def _cpu() -> str | None:
    """Return the name of the processor, None where the system does not say."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or None


def machine() -> dict[str, Any]:
    """Return packages, interpreter and machine."""
    import torch

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "packages": packages,
        "python": platform.python_version(),
        "hardware": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cpu": _cpu(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cpu_count": os.cpu_count(),
            "cpu_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "cuda": torch.version.cuda,
        },
    }
