"""The jobs of a sweep as composed and checked, before any of them begins."""

import math
import shlex
from collections.abc import Collection, Iterator, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base.errors import PeakpointError, UserError
from peakpoint.base.terminal import Console
from peakpoint.trainer.config import recorded, unheeded
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.explain import explain
from peakpoint.trainer.config.hydra_overrides import keys
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.study import MOST
from peakpoint.trainer.sweep.record import Job

Planned = tuple[Job, DictConfig, Config]


def planned(config: DictConfig) -> Iterator[Planned]:
    """Yield each job with its configuration, as composed and checked. Raises UserError, which names the job.

    Of another sweeper than Hydra's own, which chooses its jobs as it goes, nothing is known before.
    """
    if not str(config.hydra.sweeper._target_).endswith(f".{BasicSweeper.__name__}"):
        return
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*params, *run_record.typed()])
    count = math.prod(len(recorded.values_of(word)) for word in [*params, *run_record.typed()])
    if count > MOST:
        raise UserError(f"{count} jobs are too many for one sweep: at most {MOST} have one table.")
    try:
        [jobs] = BasicSweeper.split_arguments(overrides, None)
    except HydraException as error:
        raise UserError(explain(error)) from None
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    printed: set[str] = set()
    for number, words in enumerate(jobs):
        try:
            job, cfg, found = composed(config, words, number)
        except UserError as error:
            named = f"job {number} ({shlex.join(word for word in words if word not in shared)}): "
            raise UserError(f"{named * (len(jobs) > 1)}{error}") from None
        for line in unheeded.idle(cfg, found, keys(words)):  # it may be typed for other jobs
            if line not in printed:
                printed.add(line)
                Console().say(line)
        yield job, cfg, found


def composed(
    config: DictConfig, words: Sequence[str], number: int = 0, typed: Collection[str] = ()
) -> Planned:
    """Return the job of a sweep that has these overrides, with its configuration. Raises UserError.

    Keys in `typed` are refused where they have no effect.
    """
    try:
        cfg = GlobalHydra.instance().config_loader().load_sweep_config(config, list(words))
        with open_dict(cfg):
            cfg.hydra.job.num = number
            directory = str(cfg.hydra.sweep.subdir)
            del cfg["hydra"]
        run_record.refuse_passwords(cfg)
        return Job(number, directory, tuple(words)), cfg, checked(cfg, typed)
    except (HydraException, OmegaConfBaseException, PeakpointError) as error:
        raise UserError(explain(error)) from None
