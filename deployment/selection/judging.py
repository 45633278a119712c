"""Rules applied to facts, without files: requirements, ranking and ties."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TypeVar

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.metrics import bad_loss
from peakpoint.checkpointing.policies.sparsity import SLACK
from peakpoint.checkpointing.policy import order, ranked
from peakpoint.deployment.selection.intervals import wilson
from peakpoint.deployment.selection.rules import Key, Requirement, Tie

Facts = Mapping[str, float]
T = TypeVar("T")


def failure(rule: Requirement, facts: Facts, references: Mapping[str, Facts]) -> str | None:
    """Return why facts do not meet a requirement, or None when they do.

    `references` holds the facts that margins are measured from; a rule against an absent one is skipped.
    """
    if rule.versus is not None and rule.versus not in references:
        return None
    if (value := ranked(facts, rule.metric)) is None:
        return f"{rule}: {missing(facts, rule.metric)}"
    if rule.versus is None:
        return None if _met(rule, value, 0.0) else f"{rule}: it is {value:.6g}"
    if (reference := ranked(references[rule.versus], rule.metric)) is None:
        return f"{rule}: of the {rule.versus}, {missing(references[rule.versus], rule.metric)}"
    if reference < 0 and rule.operator.endswith("ratio"):
        return f"{rule}: a ratio to {reference:.6g}, which is below 0, says nothing"
    return (
        None
        if _met(rule, value, reference)
        else f"{rule}: it is {value:.6g}, the {rule.versus} {reference:.6g}"
    )


def missing(facts: Facts, metric: str) -> str:
    """Return why a metric cannot be ranked."""
    if metric not in facts:
        return f"{metric} is not recorded"
    lost = bad_loss(facts) or metric
    return f"{lost} is {facts[lost]}"


def _met(rule: Requirement, given: float, versus: float) -> bool:
    # In decimals, as people write them: in binary 0.69 - 0.7 is below -0.01.
    value, bound, reference = (Decimal(repr(float(x))) for x in (given, rule.bound, versus))
    # A mask reaches a sparsity up to one weight, as for the policy of the same name.
    slack = Decimal(repr(SLACK)) if rule.metric == "sparsity" else Decimal(0)
    match rule.operator:
        case "min":
            return value >= bound - slack
        case "max":
            return value <= bound + slack
        case "above":
            return value > bound
        case "below":
            return value < bound
        case "min_delta":
            return value - reference >= bound - slack
        case "max_delta":
            return value - reference <= bound + slack
        case "min_ratio":
            return value >= reference * bound - slack
        case "max_ratio":
            return value <= reference * bound + slack
    raise AssertionError(rule.operator)


def by_rank(
    found: Sequence[T], facts: Callable[[T], Facts], keys: Sequence[Key], later: Callable[[T], tuple]
) -> list[T]:
    """Sort best first, by each key in turn and then by `later`. Every metric of the keys must be present."""

    def place(one: T) -> tuple:
        return (*(order(facts(one)[key.metric], key.mode) for key in keys), *later(one))

    return sorted(found, key=place, reverse=True)


def by_preference(
    ranking: Sequence[T], facts: Callable[[T], Facts], tie: Tie, samples: int | None
) -> tuple[list[T], list[T]]:
    """Return the candidates that tie with the first of a ranking, ordered by `prefer`, and the others.

    `samples` is the number of images of the first's evaluation, for a tie by confidence. Candidates without a
    value for `prefer` come last. Raises CheckpointError when the metric is no proportion.
    """
    best = facts(ranking[0])[tie.metric]
    if tie.confidence is None:
        distance = Decimal(repr(tie.within))
    else:
        assert samples
        if not 0 <= best <= 1:
            raise CheckpointError(
                f"tie.confidence: {tie.metric} {best:g} is no fraction of 1: use tie.within, a distance."
            )
        low, _ = wilson(best, samples, 1 - tie.confidence)
        distance = Decimal(repr(max(0.0, best - low)))  # at 0, low is off by rounding

    def tied(one: T) -> bool:
        return abs(Decimal(repr(facts(one)[tie.metric])) - Decimal(repr(best))) <= distance

    def place(one: T) -> tuple:
        values = ((ranked(facts(one), key.metric), key.mode) for key in tie.prefer)
        return tuple(float("-inf") if value is None else order(value, mode) for value, mode in values)

    # Sorting is stable: equal preferences keep the order of the ranking.
    together = sorted(filter(tied, ranking), key=place, reverse=True)
    return together, [one for one in ranking if not tied(one)]
