"""Choose the checkpoint that becomes a release: by rules over manifests, then by measuring it again."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import nearest
from peakpoint.checkpointing.policy import ranked
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import aliases, listing, locate
from peakpoint.checkpointing.storage.manifest import MILESTONE, Manifest
from peakpoint.deployment.inference.evaluate import Measured
from peakpoint.deployment.selection import judging
from peakpoint.deployment.selection.judging import Candidate, Facts
from peakpoint.deployment.selection.measure import Appraiser, Refused
from peakpoint.deployment.selection.rules import CHAMPION, MEASURED, TARGET, Requirement, Rules

OWN = ("epoch", "global_step", "sparsity", "bytes")
"""Fields of every manifest that rules may name beside its metrics."""


@dataclass(frozen=True)
class Selection:
    """Every candidate, best first and the rejected last; `measured` are the metrics of the winner.

    `champion` is the version that the rules compared with; `notes` name the files and rules that were
    skipped.
    """

    candidates: tuple[Candidate, ...]
    rules: Rules
    winner: tuple[Path, Manifest] | None
    measured: Measured | None
    champion: str | None
    notes: tuple[str, ...]

    def nothing(self) -> str:
        """Return the message for a selection without a winner."""
        return f"Nothing qualifies by {self.rules.name}: all {len(self.candidates)} candidates are rejected."


def choose(
    runs: Sequence[Path],
    rules: Rules,
    *,
    champion_of: Path | None = None,
    data_root: str | Path | None = None,
    device: str = "cpu",
    dry_run: bool = False,
) -> Selection:
    """Apply rules to every checkpoint of some runs, and measure the best again on its run's data.

    A checkpoint that is damaged or whose metrics differ from the recorded ones is rejected, and the next is
    tried. `champion_of` is the run or folder of the champion to compare with, by default `runs`; `dry_run`
    leaves out the evaluation. Raises CheckpointError for rules that fit no candidate and for unreadable data.
    """
    roots = sorted({Path(os.path.abspath(listing.checkpoint_root(run))) for run in runs})  # noqa: PTH100
    found = [candidate for root in roots for candidate in candidates(root)]
    if not found:
        raise CheckpointError(f"{', '.join(map(str, runs))}: there is no checkpoint to choose from.")
    known = {*OWN, *MEASURED}.union(*(candidate.facts for candidate in found))
    for metric in rules.metrics:
        if metric not in known:
            end = nearest(metric, known)
            raise CheckpointError(f"{rules.name}: no checkpoint has recorded {metric}{end}")
    judge = _Judge(rules, roots, champion_of, Appraiser(data_root, device))
    judge.notes += [f"skipped: {reason}" for root in roots for _, reason in listing.unreadable(root)]
    for candidate in found:
        judge.judge(candidate)
    measured = judge.pick((c for c in found if not c.rejected), dry_run=dry_run)
    # Sorting is stable: the rejected, which have no rank, stay in the order of their saves.
    order = sorted(found, key=lambda c: c.rank or len(found) + 1)
    winner = (order[0].root, order[0].manifest) if order[0].rank else None
    return Selection(tuple(order), rules, winner, measured, judge.version, tuple(dict.fromkeys(judge.notes)))


def candidates(root: Path) -> list[Candidate]:
    """Return the checkpoints under a root, oldest first; a milestone represents all roles of its bytes."""
    alike: dict[Any, list[Manifest]] = {}
    for m in sorted(listing.own(root, listing.manifests(root)), key=lambda m: m.tier != MILESTONE):
        alike.setdefault((m.digest, repr(sorted(m.metrics.items()))), []).append(m)
    firsts = sorted(alike.values(), key=lambda names: names[0].sequence)
    return [Candidate(root, first, facts_of(first), twins) for first, *twins in firsts]


def facts_of(manifest: Manifest) -> dict[str, float]:
    """Return the values of a manifest that rules may name."""
    own = {name: getattr(manifest, name) for name in OWN}
    return {**manifest.metrics, **{name: float(value) for name, value in own.items() if value is not None}}


class _Judge:
    """Applies rules to candidates, with margins from the champion and from the target of each run."""

    def __init__(
        self, rules: Rules, roots: Sequence[Path], champion_of: Path | None, appraiser: Appraiser
    ) -> None:
        self.rules, self.appraiser = rules, appraiser
        self.notes: list[str] = []
        self.version: str | None = None
        self._champion: Facts = {}
        validated: list[Any] = []
        if against := [rule for rule in rules.require if rule.vs == CHAMPION]:
            places = [listing.checkpoint_root(champion_of)] if champion_of else roots
            validated.append(self._measure_champion(places, against))
        targeted = any(rule.vs == TARGET for rule in rules.require)
        asked = roots if targeted or any(validated) or len(roots) > 1 else []
        trained = {root: _target_and_data(root) for root in asked}
        self._targets = {
            root: {"sparsity": target} for root, (target, _) in trained.items() if target is not None
        }
        validated = [data for data in (*validated, *(data for _, data in trained.values())) if data]
        if any(data != validated[0] for data in validated):
            self.notes.append(
                "the checkpoints were validated on different images: compare their metrics with care"
            )

    def _measure_champion(self, places: Sequence[Path], against: Sequence[Requirement]) -> Any:
        """Take the facts of the champion; return the data it was validated on, None without a champion."""
        having = {root: m for root in places if (m := aliases.release_of(root, aliases.CHAMPION))}
        if len(having) > 1:
            raise CheckpointError(
                f"{' and '.join(map(str, having))} have a champion each: name one of them with --champion-of."
            )
        for root, manifest in having.items():
            self.version = listing.version_of(manifest)
            wanted = {rule.metric for rule in against} & set(MEASURED)
            measured = self.appraiser.speed(root, manifest, wanted, self.rules.latency)
            self._champion = facts_of(manifest) | measured
            return ((manifest.metadata or {}).get("trained_with") or {}).get("fingerprint")
        count = sum(len(rule.bounds) for rule in against)
        self.notes.append(f"there is no champion yet: {count} rule{'s'[: count - 1]} against it skipped")
        return None

    def judge(self, candidate: Candidate) -> None:
        """Reject by the manifest first; size and speed are measured only of candidates that pass."""
        self._apply(candidate, measured=False)
        wanted = set(self.rules.metrics) & set(MEASURED)
        if "latency_ms" in wanted:
            how = self.rules.latency
            self.notes.append(
                f"latency_ms: the median of {how.repeats} passes over {how.batch} image(s) on "
                f"{self.appraiser.device}"
            )
        if wanted and not candidate.rejected:
            try:
                self._intact(candidate)
                root, manifest = candidate.root, candidate.manifest
                candidate.facts |= self.appraiser.speed(root, manifest, wanted, self.rules.latency)
            except Refused as error:
                candidate.rejected.append(str(error))
            else:
                self._apply(candidate, measured=True)

    def _apply(self, candidate: Candidate, *, measured: bool) -> None:
        facts, target = candidate.facts, self._targets.get(candidate.root)
        references = {name: known for name, known in ((CHAMPION, self._champion), (TARGET, target)) if known}
        for rule in self.rules.require:
            if (rule.metric in MEASURED) == measured:
                candidate.rejected += judging.failures(rule, facts, references)
        for key in self.rules.rank:
            if (key.metric in MEASURED) == measured and ranked(facts, key.metric) is None:
                candidate.rejected.append(f"rank {key}: {judging.missing(facts, key.metric)}")

    def pick(self, qualified: Iterable[Candidate], *, dry_run: bool) -> Measured | None:
        """Rank the candidates from 1, the best that is confirmed; one that is not is rejected."""
        left = list(qualified)
        while left:
            ranking = judging.by_rank(left, self.rules.rank)
            doubtful = first = ranking[0]
            try:
                ranking = self._tied_first(ranking)
                doubtful = ranking[0]
                self._intact(doubtful)
                root, manifest = doubtful.root, doubtful.manifest
                measured = None if dry_run else self.appraiser.prove(root, manifest, self.rules)
            except Refused as error:
                doubtful.rejected.append(str(error))
                left.remove(doubtful)
                continue
            for number, candidate in enumerate(ranking, 1):
                candidate.rank = number
            if doubtful is not first:
                self.notes.append(judging.tie_in_words(self.rules.tie, doubtful, first))
            return measured
        return None

    def _tied_first(self, ranking: list[Candidate]) -> list[Candidate]:
        """Return the ranking with ties of its first ordered by preference. Raises Refused for the first."""
        tie, samples = self.rules.tie, None
        if tie is None or len(ranking) == 1:
            return ranking
        if tie.confidence is not None:
            self._intact(ranking[0])
            samples = self.appraiser.samples(ranking[0].root, ranking[0].manifest)
            if not samples:
                self.notes.append(
                    f"no tie: {ranking[0].path} does not record on how many images it was evaluated"
                )
                return ranking
        return judging.by_preference(ranking, tie, samples)

    def _intact(self, candidate: Candidate) -> None:
        """Raise Refused unless the file is sound; a sound twin takes its place."""
        try:
            self.appraiser.sound(candidate.root, candidate.manifest)
        except Refused as error:
            sound = (m for m in candidate.twins if locate.is_sound(candidate.root, m))
            if (twin := next(sound, None)) is None:
                raise
            self.notes.append(f"{error} {twin.file} has the same bytes, intact.")
            candidate.manifest = twin


def _target_and_data(root: Path) -> tuple[float | None, Any]:
    """Return target sparsity and data of a run by its newest sound checkpoint, each None if unknown."""
    try:
        newest = locate.newest_sound(root)
        saved = serialize.load(root / newest.file)
        return float(saved["config"]["pruning"]["target"]), saved["metadata"]["data"]
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None, None
