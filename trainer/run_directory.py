"""The directory of a start: checked before Hydra makes it, and left as it was when the start is refused.

Hydra itself writes nothing into the directory of a run: `.hydra` and train.log are written by the run, once
it holds the directory's lock and nothing is left that could refuse it.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base.errors import PeakpointError, UserError
from peakpoint.base.terminal import say_error
from peakpoint.trainer.config.explain import explain
from peakpoint.trainer.config.hydra_overrides import override
from peakpoint.trainer.reports import run_record

LOG = "peakpoint.trainer.listeners.retrying_file.RetryingHandler"
SWEEP = "multirun.yaml"
OWNED = ("checkpoints", run_record.HYDRA)
"""The folders of a run in which nothing else may be written."""

_made: list[Path] = []
"""Paths made for this start, removed again if it is refused; innermost first."""


class Before(Callback):
    """Refuses a start before Hydra has made anything for it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Note which directories are new; that of a sweep has its own record."""
        with refusing(config):
            directory = expanded("hydra.run.dir", config.hydra.run.dir)
            if os.path.lexists(directory / SWEEP) and not os.path.lexists(directory / run_record.RUN):
                raise UserError(f"{directory} holds a sweep: choose another hydra.run.dir.")
            note(directory)


def expanded(key: str, directory: str) -> Path:
    """Return a directory that Hydra will make. `~` was expanded where it was typed, and is refused in conf/.

    Raises UserError, also where something else lies there: a file, a link to nothing.
    """
    if directory.startswith("~"):
        raise UserError(f"{key}={directory} would make a folder named ~: write ${{oc.env:HOME}} instead.")
    path = Path(directory)
    there = next(part for part in (path.absolute(), *path.absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise UserError(f"{key}={directory} cannot be made: {there} is not a directory.")
    return path


@contextlib.contextmanager
def refusing(config: DictConfig) -> Iterator[None]:
    """Turn an error within into one line and exit code 1; ${hydra:...} has the values of `config`."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(config)  # ${hydra:...} in the name of the directory
    try:
        run_record.refuse_passwords(config)
        _check_writers(config)
        yield
    except PeakpointError as error:
        say_error(str(error))
        sys.exit(1)  # of an Exception in a callback Hydra makes a warning
    except (OSError, OmegaConfBaseException) as error:
        say_error(explain(error))
        sys.exit(1)
    finally:
        hydra.cfg = before
        OmegaConf.set_readonly(config.hydra, None)


def _check_writers(config: DictConfig) -> None:
    """Raise UserError for settings of Hydra that write into the run's directory."""
    if config.hydra.output_subdir is not None:
        raise UserError(
            f"hydra.output_subdir={config.hydra.output_subdir} cannot be set: "
            "a run saves its configuration in .hydra itself."
        )
    for group in ("job_logging", "hydra_logging"):
        settings: Any = OmegaConf.to_container(config.hydra[group], resolve=False) or {}
        for name, handler in (settings.get("handlers") or {}).items():
            if "filename" in handler and handler.get("class") != LOG:
                raise UserError(
                    f"hydra.{group}.handlers.{name} opens a file before the directory is the run's: "
                    f"let its class be {LOG}."
                )


def note(directory: Path) -> None:
    """Note which directories are new: they are removed again if the start is refused."""
    _made[:] = [path for path in (directory, *directory.parents) if not path.exists()]


def refuse_taken(directory: Path) -> None:
    """Raise UserError when a fresh run would be written over another, or among what belongs to one."""
    folders = (directory, *directory.parents)
    holder = next((folder for folder in folders if os.path.lexists(folder / run_record.RUN)), None)
    if holder == directory and not (directory / run_record.RUN).is_file():
        raise UserError(f"{directory / run_record.RUN} is not the record of a run: choose another directory.")
    if holder == directory:
        raise UserError(
            f"{directory} holds a run already: go on with {shlex.quote(override(directory))}, or choose "
            "another directory."
        )
    if holder and directory.relative_to(holder).parts[0] in OWNED:
        raise UserError(f"{directory} belongs to the run in {holder}: choose another directory.")


def accept() -> None:
    """Keep what was made for this start."""
    _made.clear()


def discard() -> None:
    """Remove what was made for a start that was refused."""
    made, _made[:] = _made[:], []
    for path in made:
        with contextlib.suppress(OSError):  # it holds something
            path.rmdir()
