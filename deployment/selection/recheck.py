"""Re-evaluation of a release, and the rollback to an earlier one that is better."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import nearest
from peakpoint.checkpointing.metrics import direction, shown
from peakpoint.checkpointing.policy import ranked
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.inference import evaluate, network
from peakpoint.deployment.inference.evaluate import Measured
from peakpoint.deployment.release import rollback
from peakpoint.deployment.selection.measure import Appraiser, Refused


@dataclass(frozen=True)
class Checked:
    """The result of a check: the metric as `recorded` in the manifest and the metrics as `measured` now.

    `version` is None for a checkpoint that is not a release. `measured` is None for a damaged file, which
    `problem` describes. `back` is the version that was rolled back to, `earlier` its metrics; `notes` are the
    reasons against other releases.
    """

    root: Path
    manifest: Manifest
    version: str | None
    metric: str
    recorded: float
    measured: Measured | None
    threshold: float
    problem: str | None = None
    back: str | None = None
    earlier: Measured | None = None
    notes: tuple[str, ...] = ()

    @property
    def degraded(self) -> bool:
        """Return whether the metric is worse than recorded by more than the threshold, or not measurable."""
        return not self.worse <= self.threshold + 1e-12  # NaN is degraded

    @property
    def worse(self) -> float:
        """Return by how much the metric is worse than recorded, NaN when it was not measured."""
        value = math.nan if self.measured is None else self.measured.metrics[self.metric]
        return _better(self.metric, self.recorded, value)

    @property
    def finding(self) -> str:
        """Return in words the metric as measured and as recorded, or the damage of the file."""
        if self.measured is None:
            return str(self.problem)
        value = self.measured.metrics[self.metric]
        images = f"{self.measured.samples} images of {self.measured.split}"
        found, before = (shown(self.metric, each) for each in (value, self.recorded))
        return f"{self.metric} is {found} on {images}, {before} was recorded"


def _better(metric: str, one: float, than: float) -> float:
    """Return the difference by which a value of a metric is better than another."""
    return than - one if direction(metric) == "min" else one - than


def check(root: Path, alias: str, metric: str, threshold: float, appraiser: Appraiser) -> Checked:
    """Measure the release that an alias names, and compare it with its recorded metric.

    The champion defaults to the highest release, and without releases to the best checkpoint. Raises
    CheckpointError when it cannot be measured although its file is sound.
    """
    version, manifest = _named(root, alias)
    if (recorded := ranked(manifest.metrics, metric)) is None:
        known = [name for name in manifest.metrics if ranked(manifest.metrics, name) is not None]
        raise CheckpointError(f"{manifest.file} has not recorded {metric}{nearest(metric, known)}")
    try:
        appraiser.sound(root, manifest)
    except Refused as error:
        return Checked(root, manifest, version, metric, recorded, None, threshold, str(error))
    measured = appraiser.measure(root, manifest)
    if metric not in measured.metrics:
        raise CheckpointError(f"{metric} cannot be measured{nearest(metric, measured.metrics)}")
    return Checked(root, manifest, version, metric, recorded, measured, threshold)


def _named(root: Path, alias: str) -> tuple[str | None, Manifest]:
    """Return the version that an alias names and its manifest, unverified; champion as for `load_model`."""
    aliases.check(alias)
    manifest = aliases.release_of(root, alias)
    if manifest is None and alias == aliases.CHAMPION:
        manifest = next(reversed(listing.releases(root)), None)
        if manifest is None:
            return None, network.best(root)
    if manifest is None:
        raise CheckpointError(f"{alias} names no release of {root}.")
    return listing.version_of(manifest), manifest


def roll_back(found: Checked, alias: str, appraiser: Appraiser) -> Checked:
    """Set an alias back to its last earlier release that verifies, if that is better on the same images.

    Any release that verifies is better than a damaged one. Raises CheckpointError, and changes nothing, when
    another process has set the alias meanwhile.
    """
    notes: list[str] = []
    for version, manifest in _earlier(found, alias):
        try:
            measured = _on_the_same(found, manifest, appraiser)
        except CheckpointError as error:
            notes.append(f"not {version}: {error}")
            continue
        value = measured.metrics[found.metric]
        if found.measured and not _better(found.metric, value, found.measured.metrics[found.metric]) > 0:
            again = shown(found.metric, value)
            notes.append(f"not {version}: its {found.metric} on the same images is {again}, no better")
            return replace(found, earlier=measured, notes=tuple(notes))
        if aliases.current(found.root).get(alias) != found.version:
            raise CheckpointError(f"{alias} was set to another release meanwhile: run check again.")
        rollback.roll_back(found.root, version, alias, f"check: {found.version}: {found.finding}")
        return replace(found, back=version, earlier=measured, notes=tuple(notes))
    return replace(found, notes=(*notes, f"{alias} named no {'other ' * bool(notes)}earlier release"))


def _earlier(found: Checked, alias: str) -> Iterator[tuple[str, Manifest]]:
    """Yield the releases that an alias named earlier, newest first, in the order of rollbacks."""
    released = listing.by_version(found.root)
    history = list(aliases.changes(found.root, alias))
    if not history or history[-1].version != found.version:
        return
    while (version := aliases.before(history)) is not None:
        if version in released:
            yield version, released[version]
        history = [change for change in history if change.version != version]


def _on_the_same(found: Checked, manifest: Manifest, appraiser: Appraiser) -> Measured:
    """Measure an earlier release on the images of the later one. Raises CheckpointError."""
    if appraiser.other_data is None and found.measured:
        now, then = (evaluate.trained_with(found.root, m) for m in (found.manifest, manifest))
        if now["fingerprint"] != then["fingerprint"]:
            raise CheckpointError(
                "it was trained with other data or another split of it, perhaps with these images: compare "
                "them on images that neither has seen, with --other-data."
            )
    return appraiser.measure(found.root, manifest)
