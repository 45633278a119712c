"""The command that resumes a run, and the changes without which a finished run has nothing to train."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from peakpoint.base import registry
from peakpoint.base.errors import UserError
from peakpoint.trainer.config import hydra_overrides, recorded
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.resume import refusals
from peakpoint.trainer.resume.plan import Plan

SEARCHED = "hydra.searchpath"
"""The override that names more folders of the configuration."""
PLACES = ("--config-path", "--config-name", "--config-dir")
_PROGRAMS = {"peakpoint": ["peakpoint", "train"], "__main__.py": ["python", "-m", "peakpoint", "train"]}


def command(directory: Path, *more: str) -> str:
    """Return the line that resumes a run from a shell in this directory, with `more` overrides.

    A record is not trusted for the place of the configuration, modules to import, environment variables and
    mirrors: the line gives them itself.
    """
    program = _PROGRAMS.get(Path(sys.argv[0]).name, ["python", sys.argv[0]])
    words = [
        *config_options(sys.argv[1:]),
        *(o for o in run_record.typed("hydra") if hydra_overrides.split(o)[0] == SEARCHED),
        *recorded.needs_word(run_record.typed()),
    ]
    return shlex.join([*program, *words, hydra_overrides.override(_from_here(directory)), *more])


def _from_here(directory: Path) -> Path:
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory


def after(config: Config, directory: Path, epoch: int, step: int) -> list[str]:
    """Return the lines that follow a finished run: train on, for twice as long, then its report and release.

    A run that a policy ended has no line to train on, since the remedy is in the policy's settings.
    """
    longer = [word.partition("=")[0] for word in needed(config, epoch, step)[0]]
    run = str(_from_here(directory))
    return [
        *([command(directory, *(f"{key}={2 * getattr(config, key)}" for key in longer))] if longer else []),
        shlex.join(["peakpoint", "report", run]),
        shlex.join(["peakpoint", "promote", run, "--version", "1.0.0", "--card", "card.yaml"]),
    ]


def config_options(argv: list[str]) -> list[str]:
    """Return the options of Hydra that say where its configuration lies."""
    given, _ = get_args_parser().parse_known_args(argv)
    named = {
        "config-path": given.config_path,
        "config-name": given.config_name,
        "config-dir": given.config_dir,
    }
    return [word for name, value in named.items() if value for word in (f"--{name}", value)]


def with_plugins(sentence: str, plan: Plan) -> str:
    """Return a refusal with the plugins of the resumed attempt that this command line leaves out, by name."""
    attempt = plan.attempt or {}
    used = registry.recorded({registry.KEY: registry.named(attempt.get("overrides", []))})
    now = registry.named(plan.argv)
    if {*used} <= {*now}:
        return sentence
    needed = shlex.quote(f"{registry.KEY}=[{','.join(dict.fromkeys([*now, *used]))}]")
    return sentence.replace(
        registry.OWN,
        f"The run used {registry.KEY}=[{','.join(used)}], and this command does not: type {needed}.",
    )


def lacking(plan: Plan) -> str:
    """Return a sentence that names the options of the resumed attempt that this command line lacks, or "".

    Their recorded values are neither printed nor followed.
    """
    if plan.attempt is None:
        return ""
    try:
        words = shlex.split(str(plan.attempt.get("command", "")))
    except ValueError:
        return ""
    before, now = _named_options(words), _named_options(plan.argv)
    missing = [name for name in before if name not in now]
    return f"The run was started with {' and '.join(missing)}: add what was given there." if missing else ""


def _named_options(words: Sequence[str]) -> list[str]:
    """Return the options among the words of a command that say where the configuration lies."""
    names = {word.partition("=")[0] for word in words}
    options = get_args_parser()._option_string_actions
    given = {options[name].option_strings[0] for name in names if name in options}
    return [name for name in (*PLACES, SEARCHED) if name in given | names]


def needed(config: Config, epoch: int, step: int) -> tuple[list[str], str]:
    """Return the overrides that a run needs to train beyond an epoch and step, and their bounds in words."""
    more = []
    if epoch >= config.epochs:
        more.append(("epochs=N", f"N above {epoch}"))
    if config.max_steps is not None and step >= config.max_steps:
        more.append(("max_steps=M", f"M above {step}, or null"))
    return [word for word, _ in more], " and ".join(bound for _, bound in more)


def finished(cfg: DictConfig, config: Config, plan: Plan) -> str | None:
    """Return a sentence when the resumed run is finished and the command leaves nothing to train, else None.

    Raises UserError for a change that is not allowed, or that has no effect because no step is left.
    """
    assert plan.run
    assert plan.attempt
    if not os.path.lexists(plan.run / run_record.STATUS):
        return None
    try:
        status = run_record.read_status(plan.run)
    except UserError as error:
        raise UserError(f"{error} Move it away to resume without it.") from None
    if plan.file or status["state"] != "finished":
        return None
    epoch, step = status["epoch"], status["step"]
    more, bounds = needed(config, epoch, step)
    asked = [k for k in plan.typed if k not in (*hydra_overrides.OWN, "plugins", SEARCHED)]
    if asked and not more:
        return None
    where = f"epoch {epoch + bool(status.get('batch'))}, step {step}"
    done = f"{plan.run} is finished at {where}: {status['reason']}."
    advice = f"To train on: {command(plan.run, *more)} with {bounds or 'another setting of what ended it'}."
    saved = run_record.saved_config(plan.run, plan.attempt)
    if idle := refusals.asked(cfg, saved, plan.typed) if asked else []:
        raise UserError(f"{done} No step is left for {', '.join(idle)} to change. {advice}")
    return f"{done} {advice}"
