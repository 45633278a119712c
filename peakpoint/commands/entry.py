"""What train.py does: `resume=` expanded, the configuration composed and checked, one run or a sweep of them.

torch is imported only once a run begins, so that --help and tab completion answer at once.
"""

import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import registry
from peakpoint.base.errors import PeakpointError, UserError
from peakpoint.base.files import CONF
from peakpoint.base.terminal import say_error, steady_output
from peakpoint.checkpointing.remote.urls import refuse_passwords
from peakpoint.trainer import run_directory, signals
from peakpoint.trainer.config import commandline
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.choices import all_choices, load_plugins, register_schemas
from peakpoint.trainer.config.explain import explain
from peakpoint.trainer.resume import advice
from peakpoint.trainer.resume.plan import make_plan

EXPECTED = (PeakpointError, HydraException, OmegaConfBaseException, OSError)


def main() -> None:
    """Run the command line; the exit code is 0 only if every job ended well."""
    debug = os.environ.get("HYDRA_FULL_ERROR", "").lower() not in ("", "0", "false", "no", "off")
    # Hydra prints its errors over several lines and exits; with this set it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with steady_output():
        try:
            with signals.ending_at_once():
                code = _main()
        except KeyboardInterrupt as end:
            number = end.number if isinstance(end, signals.Ended) else signal.SIGINT
            say_error(f"ended by {number.name}.")
            code = 128 + number
        except Exception as error:
            sentence = None if debug else _sentence(error)
            if sentence is None:
                if plugin := registry.raised_in(error):
                    error.add_note(plugin)  # the last line of the traceback
                raise
            say_error(sentence)
            code = 1
        sys.exit(code)


def _sentence(error: Exception) -> str | None:
    """Return the message for an error that a user can correct; None for a bug."""
    if isinstance(error, ValueError):
        if isinstance(error.__cause__, OSError):  # logging, of a file that it cannot open
            return explain(error.__cause__)
        if str(error).startswith("Config group override"):
            return "null is not a choice of a group: name an option."
    return explain(error) if isinstance(error, EXPECTED) else None


_HELP = """\
Peakpoint: train, prune, and never lose the peak.

Use:
  python train.py optimizer=adamwprune checkpoint.interval=10
  python train.py -m optimizer=adamwprune,adamw,sgd pruning.target=0.5,0.7,0.9
  python train.py resume=outputs/RUN epochs=200
  python train.py experiment=demo

Choices (group=option):
{choices}

Values (key=value); python train.py --cfg job shows all of them.
Precedence: conf/ < experiment < command line < command line of a resume.

Tab completion: eval "$(python train.py -sc install=bash)"
All flags of Hydra: python train.py --hydra-help"""


def _rooted(word: str) -> str:
    """Return an argument with a relative --config-path made absolute: Hydra takes it from this file."""
    option, equals, path = word.partition("=")
    return (
        f"{option}={CONF.resolve().parent / path}" if equals and option in ("--config-path", "-cp") else word
    )


def _main() -> int:
    refuse_passwords(sys.argv[1:])  # before anything is written down, or repeated in an error
    register_schemas()
    plan = make_plan(commandline.read(sys.argv[1:]))
    sys.argv[1:] = map(_rooted, plan.argv)
    load_plugins(registry.named(plan.argv))
    if {"-h", "--help"} & set(plan.argv):  # Hydra's own takes a second, and shows the schemas as choices
        print(_HELP.format(choices=all_choices()))
        return 0
    codes: list[int] = []
    errors: list[Exception] = []
    argv, process = list(sys.argv), os.getpid()

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: DictConfig) -> float | None:  # a launcher may run it elsewhere
        hydra_cfg = HydraConfig.get()
        if hydra_cfg.mode is RunMode.MULTIRUN:
            with signals.deferred():
                from peakpoint.trainer.sweep.job import run_job

            return run_job(cfg, argv, here=os.getpid() == process)
        directory = Path(hydra_cfg.runtime.output_dir).resolve()  # a link may lead elsewhere later
        try:
            config = checked(cfg, plan.typed)  # these two before torch is imported
            if directory != plan.run:
                run_directory.refuse_taken(directory)
            with signals.deferred():
                from peakpoint.trainer.run import run

            codes.append(run(config, cfg, plan, directory))
        except EXPECTED as error:  # past Hydra, which would add lines of its own
            errors.append(error)
        return None

    try:
        job()
    except MissingConfigException as error:
        sentence = advice.with_plugins(explain(error), plan)
        raise UserError(f"{sentence} {advice.lacking(plan)}".rstrip()) from None
    finally:
        run_directory.discard()
        if sweep := sys.modules.get("peakpoint.trainer.sweep.start"):
            codes.append(sweep.end())
    if errors and registry.OWN in str(errors[0]):
        raise UserError(advice.with_plugins(str(errors[0]), plan)) from None
    if errors:
        raise errors[0]
    return max(codes, default=0)
