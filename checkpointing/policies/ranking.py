"""Shared by the policies that rank checkpoints by a metric: names, reasons, checks, and the k best."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.metrics import direction
from peakpoint.checkpointing.policy import better, order, ranked
from peakpoint.checkpointing.storage.manifest import Manifest
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


def check_mode(option: str, mode: str) -> None:
    """Raise CheckpointError unless `mode` is max or min."""
    check(mode in ("max", "min"), option, mode, "max or min")


@functools.cache
def warn_of_mode(metric: str, mode: str) -> None:
    """Warn, once in a process, of a mode that the name of its metric contradicts; the mode is used."""
    known = direction(metric)
    if known not in (None, mode):
        log.warning(
            "mode=%s is taken for %s, whose name says that it is better the %s it is.",
            mode, metric, "higher" if known == "max" else "lower",
        )  # fmt: skip


def check_min_delta(option: str, min_delta: float) -> None:
    """Raise CheckpointError unless `min_delta` is finite and not negative."""
    check(0 <= min_delta < float("inf"), option, min_delta, "at least 0 and finite")


def check_count(option: str, count: int | None) -> None:
    """Raise CheckpointError unless `count` is at least 1, or None."""
    check(count is None or count >= 1, option, count, "at least 1")


def stem(role: str, value: float, epoch: int) -> str:
    """The file name of a milestone, without its suffix."""
    return safe_name(f"{role}_{value:.4f}_epoch_{epoch:04d}")


def comparison(value: float, peak: Peak | None) -> str:
    """The end of a reason for saving: what the value was compared with."""
    if peak is None:
        return f"{value:.4f} is the first"
    return f"{value:.4f} beats {peak['value']:.4f} of epoch {peak['epoch']}"


def read_peak(state: Peak) -> Peak:
    """A saved peak as a new one. Raises KeyError for a missing entry."""
    return Peak(value=float(state["value"]), epoch=int(state["epoch"]))


def newest(manifests: Sequence[Manifest], tag: str, count: int) -> dict[Manifest, str]:
    """The checkpoints of the `count` newest moments that carry `tag`, by the order of saving.

    A resumed run may save a step again: of those of one step the newest stands for all.
    """
    tagged = sorted((m for m in manifests if tag in m.tags), key=lambda m: m.sequence)
    moments = {(m.epoch, m.global_step): m for m in tagged}
    newest_last = sorted(moments.values(), key=lambda m: m.sequence)
    return dict.fromkeys(newest_last[-count:], f"one of the last {count} of {tag}")


def scored(manifests: Sequence[Manifest], tag: str, metric: str) -> list[tuple[float, Manifest]]:
    """The checkpoints that carry `tag` with their ranked values, oldest first.

    A resumed run may save a step again: of those with the same step and value the newest stands for all.
    """
    found: dict[tuple[int, float], Manifest] = {}
    for manifest in sorted(manifests, key=lambda m: m.sequence):
        value = ranked(manifest.metrics, metric)
        if tag in manifest.tags and value is not None:
            found[manifest.global_step, value] = manifest
    return [(value, manifest) for (_, value), manifest in found.items()]


def reconcile(
    peaks: dict[str, Peak], roles: Mapping[str, tuple[str, str, str]], manifests: Sequence[Manifest]
) -> list[str]:
    """Replace each peak that no checkpoint reaches by the best value that one has; returns a sentence each.

    `roles` has the tag, the metric and its mode by the keys of `peaks`.
    """
    lost = []
    for key, peak in list(peaks.items()):
        tag, metric, mode = roles[key]
        pairs = scored(manifests, tag, metric)
        value, there = max(pairs, key=lambda p: (order(p[0], mode), p[1].sequence), default=(None, None))
        if value is not None and not better(peak["value"], value, mode):
            continue
        what = f"{peak['value']:.4f} of epoch {peak['epoch']}, the {tag}, is in no checkpoint"
        if value is None or there is None:
            del peaks[key]
            lost.append(f"{what}: the next value is saved")
        else:
            peaks[key] = Peak(value=value, epoch=there.epoch)
            lost.append(f"{what}: what beats {value:.4f} of epoch {there.epoch} is saved")
    return lost


def best(
    manifests: Sequence[Manifest], *, tag: str, metric: str, mode: str, keep: int | None, peak: Peak | None
) -> dict[Manifest, str]:
    """The `keep` best checkpoints that carry `tag`, and always that of `peak`; all of them for None.

    Of equal values the newer one is the better.
    """
    if keep is None:
        return {m: f"every {tag} is kept" for m in manifests if tag in m.tags}
    pairs = scored(manifests, tag, metric)
    pairs.sort(key=lambda pair: (order(pair[0], mode), pair[1].sequence), reverse=True)
    kept = {m: f"number {n} of {keep} for {tag}: {v:.4f}" for n, (v, m) in enumerate(pairs[:keep], 1)}
    # A run resumed from an older checkpoint may trail a better file that it wrote before.
    current = [m for value, m in pairs if peak == Peak(value=value, epoch=m.epoch)][:1]
    return {m: f"the current {tag}: {m.metrics[metric]:.4f}" for m in current} | kept
