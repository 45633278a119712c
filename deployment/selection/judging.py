"""Rules applied to the facts of candidates, without files: requirements, ranking and ties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.metrics import bad_loss, shown
from peakpoint.checkpointing.policies.sparsity import SLACK
from peakpoint.checkpointing.policy import order, ranked
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.selection.intervals import wilson
from peakpoint.deployment.selection.rules import Key, Requirement, Tie

Facts = Mapping[str, float]


@dataclass(eq=False)
class Candidate:
    """A checkpoint, its facts, and the reasons it was rejected for.

    `twins` are other names of the same bytes, which are separate files in a copy of a run.
    """

    root: Path
    manifest: Manifest
    facts: dict[str, float]
    twins: list[Manifest] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    rank: int | None = None

    @property
    def path(self) -> Path:
        """Return the file of the checkpoint."""
        return self.root / self.manifest.file

    def later(self) -> tuple[Any, ...]:
        """Return a sort key for equal ranks: the later step first, then a fixed arbitrary order."""
        m = self.manifest
        return (m.global_step, m.sequence, m.run, m.file, str(self.root))


def failures(rule: Requirement, facts: Facts, references: Mapping[str, Facts]) -> list[str]:
    """Return why facts do not meet a requirement, a sentence for each bound that they do not meet.

    `references` holds the facts that margins are measured from; a rule against an absent one is skipped.
    """
    if rule.vs is not None and rule.vs not in references:
        return []
    reasons = (_failure(rule, name, bound, facts, references) for name, bound in rule.bounds.items())
    return [reason for reason in reasons if reason]


def _failure(
    rule: Requirement, name: str, bound: float, facts: Facts, references: Mapping[str, Facts]
) -> str | None:
    wanted = _in_words(name, bound, rule.vs)
    if (value := ranked(facts, rule.metric)) is None:
        return f"{missing(facts, rule.metric)}: it must be {wanted}"
    reference = 0.0
    if rule.vs is not None:
        its = references[rule.vs]
        if (known := ranked(its, rule.metric)) is None:
            return f"for the {rule.vs}, {missing(its, rule.metric)}: {rule.metric} must be {wanted}"
        if known < 0 and name.endswith("ratio"):
            return f"{rule.metric} must be {wanted}, which has no meaning: {known:.6g} is below 0"
        reference, wanted = known, _in_words(name, bound, f"{rule.vs} ({known:.6g})")
    met = _met(rule.metric, name, bound, value, reference)
    return None if met else f"{rule.metric} is {value:.6g}: it must be {wanted}"


_LIMITS = {"min": "at least", "max": "at most", "above": "above", "below": "below"}


def _in_words(name: str, bound: float, vs: str | None) -> str:
    """Return what a bound requires of a value, such as: at least the champion (0.9) - 0.01."""
    limit = _LIMITS[name.partition("_")[0]]
    if vs is None:
        return f"{limit} {bound:g}"
    if name.endswith("ratio"):
        return f"{limit} {bound:g} times the {vs}"
    margin = f" {'+' if bound > 0 else '-'} {abs(bound):g}" if bound else ""
    return f"{limit} the {vs}{margin}"


def missing(facts: Facts, metric: str) -> str:
    """Return why a metric cannot be ranked."""
    if metric not in facts:
        return f"{metric} is not recorded"
    lost = bad_loss(facts) or metric
    return f"{lost} is {facts[lost]}"


def _met(metric: str, name: str, bound: float, value: float, reference: float) -> bool:
    # In decimals, as people write them: in binary 0.69 - 0.7 is below -0.01.
    given, limit, base = (Decimal(repr(float(number))) for number in (value, bound, reference))
    # A mask reaches a sparsity up to one weight, as for the policy of the same name.
    slack = Decimal(repr(SLACK)) if metric == "sparsity" else Decimal(0)
    if name.endswith("delta"):
        limit += base
    elif name.endswith("ratio"):
        limit *= base
    if name.startswith("min"):
        return given >= limit - slack
    if name.startswith("max"):
        return given <= limit + slack
    return given > limit if name == "above" else given < limit


def by_rank(found: Sequence[Candidate], keys: Sequence[Key]) -> list[Candidate]:
    """Sort best first, by each key in turn, then the later. Every metric of the keys must be present."""

    def place(one: Candidate) -> tuple:
        return (*(order(one.facts[key.metric], key.mode) for key in keys), *one.later())

    return sorted(found, key=place, reverse=True)


def tie_in_words(tie: Tie | None, chosen: Candidate, first: Candidate) -> str:
    """Return the sentence for a tie that put a candidate before the first of the ranking."""
    assert tie
    within = f"{tie.within:g}" if tie.confidence is None else f"the {tie.confidence:.0%} confidence interval"
    values = [shown(tie.metric, one.facts[tie.metric]) for one in (chosen, first)]
    return (
        f"tie: {chosen.manifest.file} with {tie.metric} {values[0]} is preferred to {first.manifest.file} "
        f"with {values[1]}, which differs by no more than {within}: by {', '.join(map(str, tie.prefer))}. "
        "tie: null in --rules takes the better one."
    )


def by_preference(ranking: Sequence[Candidate], tie: Tie, samples: int | None) -> list[Candidate]:
    """Return a ranking with the candidates that tie with its first ordered by `prefer`, before the others.

    `samples` is the number of images of the first's evaluation, for a tie by confidence. Candidates without a
    value for `prefer` come last of the tied. Raises CheckpointError when the metric is no proportion.
    """
    best = ranking[0].facts[tie.metric]
    if tie.confidence is None:
        distance = Decimal(repr(tie.within))
    else:
        assert samples
        if not 0 <= best <= 1:
            raise CheckpointError(
                f"tie.confidence: {tie.metric} {best:g} is not between 0 and 1: use tie.within, a distance."
            )
        low, _ = wilson(best, samples, 1 - tie.confidence)
        distance = Decimal(repr(max(0.0, best - low)))  # at 0, low is off by rounding

    def tied(one: Candidate) -> bool:
        return abs(Decimal(repr(one.facts[tie.metric])) - Decimal(repr(best))) <= distance

    def place(one: Candidate) -> tuple:
        values = ((ranked(one.facts, key.metric), key.mode) for key in tie.prefer)
        return tuple(float("-inf") if value is None else order(value, mode) for value, mode in values)

    # Sorting is stable: equal preferences keep the order of the ranking.
    together = sorted(filter(tied, ranking), key=place, reverse=True)
    return [*together, *(one for one in ranking if not tied(one))]
