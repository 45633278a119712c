"""reproduce=RUN: a run trained again by its record, and compared with it from evaluation to evaluation."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from peakpoint.base.errors import UserError
from peakpoint.base.given import as_mapping
from peakpoint.base.text import in_short, utc_now
from peakpoint.trainer.config.hydra_overrides import flat, under
from peakpoint.trainer.reports import comparison, run_record
from peakpoint.trainer.reports.comparison import Circumstance, short
from peakpoint.trainer.resume import refusals
from peakpoint.trainer.resume.plan import Plan, last_attempt

log = logging.getLogger("peakpoint")

REPORT = "reproduction.json"


@dataclass(frozen=True)
class Repetition:
    """A run that is trained again: its directory, its record, and what is known to differ.

    That is the settings changed on purpose and, of a run that was resumed, what differed before.
    """

    run: Path
    record: Mapping[str, Any]
    known: list[Circumstance]

    def begun(self, now: Mapping[str, Any], *, repeatable: bool) -> dict[str, Any]:
        """Log what differs from the recorded run before the first step; returns it for the new record.

        `now` has code, packages, data and machine; `repeatable` says whether the arithmetic is that of a
        deterministic run.
        """
        found = [*self.known, *comparison.differing(self.record, now)]
        if not repeatable:
            found.append(Circumstance("deterministic", "needed on CUDA", "false", decides=True))
        found = list(dict.fromkeys(found))
        for each in found:
            log.warning("%s%s", each, "" if each.decides else ", which hardly decides a result")
        expected = not any(each.decides for each in found)
        if expected:
            log.info("code, data, packages and hardware are those of %s: results should be equal", self.run)
        return {
            "run": self.record.get("run"),
            "directory": str(self.run),
            "expected": expected,
            "differences": [asdict(each) for each in found],
        }

    def ended(self, directory: Path, begun: Mapping[str, Any]) -> int:
        """Compare the two runs, write reproduction.json and log the outcome.

        Returns 0 if every row of the recorded run is there and equal, else 1.
        """
        found = comparison.compare(self.run, directory)
        last, here = found.steps
        same = found.first is None and here >= last
        run_record.write_json(directory / REPORT, {**begun, "time": utc_now(), "same": same, **asdict(found)})
        counts = ", ".join(f"{count} {kind}" for kind, count in found.rows.items())
        if found.first is None and not same:
            log.warning("not reproduced to its end: %s is equal so far (%s)", self.run, counts)
            log.warning("this run ends at step %d of %d", here, last)
            return 1
        if same:
            log.info("reproduced bit for bit: the rows of %s are equal (%s)", self.run, counts)
            if not found.digests:
                log.info("%s records no digests, so weights and batches were not compared", self.run)
            return 0
        log.warning("not reproduced: it parts from %s at %s", self.run, found.first)
        reasons = [each["name"] for each in begun["differences"] if each["decides"]]
        if reasons:
            log.warning("equal results were not to be expected: other than recorded: %s", ", ".join(reasons))
        else:
            log.warning("equal results were to be expected: nothing that is recorded differs")
        return 1


def find(cfg: DictConfig, plan: Plan, record: Mapping[str, Any]) -> Repetition | None:
    """Return the repetition that a start begins, or by its record goes on with; None for any other run."""
    return _begin(cfg, plan.reproduces, plan.typed) if plan.reproduces else _resumed(cfg, record)


def _begin(cfg: DictConfig, run: Path, typed: tuple[str, ...]) -> Repetition:
    """Return the repetition of a run by the composed configuration.

    Raises UserError for a run that one training does not repeat, and for a configuration that has changed
    since without a word of the command line.
    """
    record = run_record.read_run(run)
    attempts = record["attempts"]
    if attempts[0].get("resumed_from"):
        raise UserError(
            f"{run} began from a checkpoint of another run, so its record does not repeat it: reproduce "
            "that run, and resume from its checkpoint with hydra.run.dir=DIR."
        )
    configs = [run_record.saved_config(run, attempt) for attempt in attempts]
    for before, after, attempt in zip(configs, configs[1:], attempts[1:], strict=False):
        if changes := _changes(after, before):
            raise UserError(
                f"{run} was resumed on {short(attempt.get('started'))} with {changes[0].name} "
                f"{changes[0].now} instead of {changes[0].before}, so one training does not repeat it."
            )
    changes = _changes(cfg, configs[-1])
    anything = {"experiment", "optimizer"} & {*typed}  # a group that is chosen anew may change any key
    drift = [change for change in changes if not anything and not under(change.name, typed)]
    if drift and not cfg.accept_drift:
        raise UserError(
            f"{drift[0]} now, and the command does not name it: conf/ has changed since. Add "
            f"{drift[0].name}={drift[0].before} to keep it, or accept_drift=true."
        )
    if changes:
        log.warning("changed on purpose: %s", in_short([each.name for each in changes]))
    return Repetition(run, record, changes)


def _resumed(cfg: DictConfig, known: Mapping[str, Any]) -> Repetition | None:
    """Return the repetition that a resumed run goes on with, by its record `known`; None for any other run.

    Where the recorded run is not there any more, a warning says that nothing will be compared.
    """
    of = as_mapping(known.get("reproduces"))
    if not of:
        return None
    run = Path(str(of.get("directory")))
    try:
        attempt = last_attempt(run)
        record, config = run_record.read_run(run), run_record.saved_config(run, attempt)
    except UserError as error:
        log.warning("this run will not be compared with the one that it reproduces: %s", error)
        return None
    if record.get("run") != of.get("run"):
        log.warning("this run will not be compared: %s holds another run than the one it reproduces", run)
        return None
    listed = of.get("differences")
    before = [
        Circumstance(short(each.get("name")), short(each.get("before")), short(each.get("now")), decides=True)
        for each in (listed if isinstance(listed, list) else ())
        if as_mapping(each).get("decides") is True
    ]
    return Repetition(run, record, [*_changes(cfg, config), *before])


def _changes(cfg: DictConfig, saved: DictConfig) -> list[Circumstance]:
    old, new = flat(saved), flat(cfg)
    return [
        Circumstance(key, short(old.get(key)), short(new.get(key)), decides=True)
        for key in refusals.changed_keys(cfg, saved)
        if not under(key, refusals.FREE)
    ]
