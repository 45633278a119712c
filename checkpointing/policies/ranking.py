"""Ranking of checkpoints by a metric, for the policies: names, reasons, checks, and the k best."""

import functools
import logging
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypedDict

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.metrics import direction
from peakpoint.checkpointing.policy import Decision, Policy, Save, better, order, ranked
from peakpoint.checkpointing.storage.manifest import MILESTONE, Manifest
from peakpoint.checkpointing.storage.naming import safe_name

log = logging.getLogger("peakpoint")


class Peak(TypedDict):
    """The best value so far and the epoch that reached it: plain, as it is saved."""

    value: float
    epoch: int


def check(condition: bool, option: str, value: object, must: str) -> None:
    """Raise CheckpointError, naming the option under `checkpoint.policy.`, unless the condition holds."""
    if not condition:
        raise CheckpointError(f"checkpoint.policy.{option}={value} is out of range: it must be {must}.")


def check_types(name: str, settings: Any) -> None:
    """Raise CheckpointError unless each field of a policy's settings has its annotated type."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not given.of_kind(value, field.type):
            raise CheckpointError(
                f"checkpoint.policy.{name}.{field.name}={value!r} must be {given.in_words(field.type)}."
            )


def check_metric(option: str, metric: str, mode: str, min_delta: float = 0.0) -> None:
    """Raise CheckpointError unless `mode` is max or min, and `min_delta` finite and not negative."""
    check(mode in ("max", "min"), f"{option}.mode", mode, "max or min")
    check(0 <= min_delta < float("inf"), f"{option}.min_delta", min_delta, "at least 0 and finite")
    warn_of_mode(metric, mode)


@functools.cache
def warn_of_mode(metric: str, mode: str) -> None:
    """Warn, once in a process, of a mode that the name of its metric contradicts; the mode is used."""
    known = direction(metric)
    if known not in (None, mode):
        log.warning(
            "mode=%s is used for %s, although its name says that %s values are better.",
            mode, metric, "higher" if known == "max" else "lower",
        )  # fmt: skip


def check_count(option: str, count: int | None) -> None:
    """Raise CheckpointError unless `count` is at least 1, or None."""
    check(count is None or count >= 1, option, count, "at least 1")


def stem(role: str, value: float, epoch: int) -> str:
    """Return the file name of a milestone, without its suffix."""
    return safe_name(f"{role}_{value:.4f}_epoch_{epoch:04d}")


def read_peak(state: Peak) -> Peak:
    """Return a copy of a saved peak. Raises KeyError for a missing entry."""
    return Peak(value=float(state["value"]), epoch=int(state["epoch"]))


def newest(manifests: Sequence[Manifest], tag: str, count: int) -> dict[Manifest, str]:
    """Return the checkpoints of the `count` newest moments that carry `tag`, in the order of saving.

    A resumed run may save a step again: of one step only the newest counts.
    """
    tagged = sorted((m for m in manifests if tag in m.tags), key=lambda m: m.sequence)
    moments = {(m.epoch, m.global_step): m for m in tagged}
    newest_last = sorted(moments.values(), key=lambda m: m.sequence)
    return dict.fromkeys(newest_last[-count:], f"one of the last {count} of {tag}")


def scored(manifests: Sequence[Manifest], tag: str, metric: str) -> list[tuple[float, Manifest]]:
    """Return the checkpoints that carry `tag` with their ranked values, oldest first.

    A resumed run may save a step again: of one step and value only the newest counts.
    """
    found: dict[tuple[int, float], Manifest] = {}
    for manifest in sorted(manifests, key=lambda m: m.sequence):
        value = ranked(manifest.metrics, metric)
        if tag in manifest.tags and value is not None:
            found[manifest.global_step, value] = manifest
    return [(value, manifest) for (_, value), manifest in found.items()]


class Role(NamedTuple):
    """A role that goes to the best by a metric; better means better by more than `min_delta`."""

    tag: str
    metric: str
    mode: str
    min_delta: float


def best(
    manifests: Sequence[Manifest], role: Role, keep: int | None, peak: Peak | None = None
) -> dict[Manifest, str]:
    """Return the `keep` best checkpoints of a role, all for None, and always that of `peak`.

    Of equal values the newer one is the better.
    """
    tag, metric, mode, _ = role
    if keep is None:
        return {m: f"every {tag} is kept" for m in manifests if tag in m.tags}
    pairs = scored(manifests, tag, metric)
    pairs.sort(key=lambda pair: (order(pair[0], mode), pair[1].sequence), reverse=True)
    kept = {m: f"number {n} of {keep} for {tag}: {v:.4f}" for n, (v, m) in enumerate(pairs[:keep], 1)}
    # A run resumed from an older checkpoint may trail a better file that it wrote before.
    current = [m for value, m in pairs if peak == Peak(value=value, epoch=m.epoch)][:1]
    return {m: f"the current {tag}: {m.metrics[metric]:.4f}" for m in current} | kept


class Ranked(Policy):
    """A policy that saves the best for each of its roles and keeps the best `keep` of each, all for None.

    `roles` are by the keys of the best values in the saved counters.
    """

    roles: dict[str, Role]
    keep: int | None

    def __post_init__(self) -> None:
        self._peaks: dict[str, Peak] = {}

    @property
    def tags(self) -> Collection[str]:
        """Return the roles that it gives."""
        return {role.tag for role in self.roles.values()}

    @property
    def watched(self) -> Collection[str]:
        """Return the metrics that it uses."""
        return {role.metric for role in self.roles.values()}

    def improved(self, key: str, value: float, epoch: int, what: str) -> list[Decision]:
        """Return a save when a value beats the best of a role so far; `what` begins its reason."""
        role, peak = self.roles[key], self._peaks.get(key)
        if not better(value, peak and peak["value"], role.mode, role.min_delta):
            return []
        self._peaks[key] = Peak(value=value, epoch=epoch)
        compared = "is the first" if peak is None else f"beats {peak['value']:.4f} of epoch {peak['epoch']}"
        return [Save(role.tag, f"{what} {value:.4f} {compared}", MILESTONE, stem(role.tag, value, epoch))]

    def keeps(self, manifests: Sequence[Manifest]) -> dict[Manifest, str]:
        """Return the best `keep` of each role, always with the current best."""
        kept: dict[Manifest, str] = {}
        for key, role in self.roles.items():
            found = best(manifests, role, self.keep, self._peaks.get(key))
            kept |= {m: f"{kept[m]}; {why}" if m in kept else why for m, why in found.items()}
        return kept

    def reconcile(self, manifests: Sequence[Manifest]) -> list[str]:
        """Replace each best without a checkpoint by the best that has one; returns a clause for each."""
        lost = []
        for key, peak in list(self._peaks.items()):
            tag, metric, mode, _ = self.roles[key]
            pairs = scored(manifests, tag, metric)
            value, there = max(pairs, key=lambda p: (order(p[0], mode), p[1].sequence), default=(None, None))
            if value is not None and not better(peak["value"], value, mode):
                continue
            what = f"{peak['value']:.4f} of epoch {peak['epoch']}, the {tag}, is in no checkpoint"
            if value is None or there is None:
                del self._peaks[key]
                lost.append(f"{what}: the next value is saved")
            else:
                self._peaks[key] = Peak(value=value, epoch=there.epoch)
                lost.append(f"{what}: the next value that beats {value:.4f} of epoch {there.epoch} is saved")
        return lost

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its epoch for each role."""
        return {"best": {key: dict(peak) for key, peak in self._peaks.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of the roles that are still configured; a new role has none."""
        self._peaks = {key: read_peak(peak) for key, peak in state["best"].items() if key in self.roles}
