"""A release: the weights of one network under a version, with all that it takes to use and to check them.

Its files are written before its manifest, which is the commit mark, and no file of a release is ever written
again. A version that was released stays taken after its files are gone: the journal has it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from peakpoint.base import semver
from peakpoint.base.disk_space import check_memory, failure, tensor_bytes
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import Staged
from peakpoint.base.text import json_text, readable, utc_now
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.storage import aliases, listing, store
from peakpoint.checkpointing.storage.manifest import PRODUCTION, Manifest, file_contents
from peakpoint.checkpointing.storage.naming import file_stem, safe_name
from peakpoint.checkpointing.storage.store import Payload
from peakpoint.deployment.inference import golden
from peakpoint.deployment.inference import network as networks
from peakpoint.deployment.inference import weights as forms
from peakpoint.deployment.inference.form import CARDS, SUFFIXES
from peakpoint.deployment.inference.form import Form as Form
from peakpoint.deployment.inference.network import Description
from peakpoint.deployment.release import publish

log = logging.getLogger("peakpoint")

FACTS = ("run", "metrics", "sparsity", "epoch", "global_step", "git_commit")
"""Fields of a release that its manifest and that of its checkpoint have as well."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release before it is written.

    `config` is Description.config(), or the caller's own for a network that takes no images: `description`
    is None then, and `golden` the golden file of `examples`, or None; `network` is the name of its class.
    `source` (run, file, digest) and `trained_with` (config, fingerprint) are the origin of the weights.
    `card` is the model card as plain JSON types; `card_text` its page in Markdown.
    """

    version: str
    name: str
    weights: Mapping[str, Any]
    config: Mapping[str, Any]
    form: Form
    reason: str
    run: str
    description: Description | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    sparsity: float | None = None
    epoch: int = 0
    global_step: int = 0
    git_commit: str | None = None
    source: Mapping[str, Any] | None = None
    trained_with: Mapping[str, Any] | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    card_text: str | None = None
    golden_inputs: int = golden.COUNT
    network: str | None = None
    golden: bytes | None = None

    @property
    def stem(self) -> str:
        """Return the name of its files without a suffix. Raises CheckpointError for an invalid one."""
        return file_stem(f"{safe_name(self.name)}_v{self.version}")

    @property
    def file(self) -> str:
        """Return the path of its weights, relative to the checkpoint root."""
        return f"{PRODUCTION}/{self.stem}{SUFFIXES[self.form.format]}"


def of(root: Path, manifest: Manifest, *, version: str, form: Form, reason: str) -> Release:
    """Return the release of a verified checkpoint of the trainer, or of an earlier release, without a card.

    Pruned weights are zero and all are in the form's dtype. Raises CheckpointError for a checkpoint whose
    network cannot be rebuilt.
    """
    trained_with: Mapping[str, Any] | None
    weights, saved = networks.contents(root, manifest)
    description = networks.trained(saved)
    if manifest.tier == PRODUCTION:
        trained_with = saved["metadata"].get("trained_with")
    else:
        weights = forms.of_checkpoint(saved, root / manifest.file)
        trained_with = {"config": saved["config"], "fingerprint": saved["metadata"].get("data")}
    return Release(
        version=version,
        name=description.name,
        weights=forms.cast(weights, form.dtype),
        config=description.config(),
        form=form,
        reason=reason,
        description=description,
        **{name: getattr(manifest, name) for name in FACTS},
        source={"run": manifest.run, "file": manifest.file, "digest": manifest.digest},
        trained_with=trained_with,
    )


def write(root: Path, release: Release) -> Manifest:
    """Make a release durable under `root`; no existing file is overwritten.

    Concurrent writers wait for each other; the second of one version is refused. Files of an interrupted
    attempt, without a manifest, go to quarantine. Raises CheckpointError for a version that is taken or does
    not announce a change, for weights that are not finite or overflow, and SaveFailed when the operating
    system refuses; then there is no such release, and all others are unchanged.
    """
    semver.key(release.version)
    expected = tensor_bytes(release.weights)
    try:
        release = replace(release, weights=forms.cast(release.weights, release.form.dtype))
        expected = tensor_bytes(release.weights)
        manifest = _manifest(release)
        payload = _payload(release, manifest)
        with publish.alone(root, payload):
            check(root, release)
            manifest = publish.publish(root, manifest, payload)
            publish.record(root, manifest)
            aliases.point_latest(root)
        return manifest
    except OSError as error:
        raise failure(root, error, expected) from error
    except (MemoryError, RuntimeError) as error:
        check_memory(error, expected)
        raise


def check(root: Path, release: Release) -> None:
    """Raise CheckpointError when the version is taken, or does not announce a changed network or input."""
    semver.check_unused(release.version, publish.taken(root))
    known = listing.by_version(root)
    before = semver.neighbour(release.version, known)
    if before is None:
        return
    earlier = known[before]
    found = semver.changes(earlier.config or {}, readable(release.config))
    try:
        shapes = forms.shapes(forms.read(root / earlier.file))
    except CheckpointError as error:
        log.warning("The shapes of %s are not compared with %s: %s", release.version, before, error)
    else:
        found += semver.shape_changes(shapes, forms.shapes(release.weights))
    semver.check_bump(release.version, known, before, found)


def _payload(release: Release, manifest: Manifest) -> Payload:
    """Return what writes each file of a release, the weights first.

    Raises CheckpointError for a config or a card of other than plain types.
    """
    where = f"{CARDS}/v{release.version}"
    found = {
        f"{PRODUCTION}/{release.stem}.config.json": _json(release.config),
        f"{where}.json": _json(release.card),
    }
    if release.card_text is not None:
        found[f"{where}.md"] = release.card_text.encode(errors="backslashreplace")
    if release.golden is not None:
        found[golden.folder(release.version)] = release.golden
    elif release.description is not None:
        rebuilt = networks.build(release.description, release.weights)
        objects.check_finite(rebuilt)
        content = golden.of_images(rebuilt, release.description, release.golden_inputs)
        found[golden.folder(release.version)] = content
    beside = {name: _holding(content) for name, content in found.items()}
    return {release.file: _weights(release, manifest), **beside}


def _holding(content: bytes) -> Callable[[Staged], object]:
    return lambda file: file.write(content)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json_text(value, indent=2) + "\n").encode()


def _weights(release: Release, manifest: Manifest) -> Callable[[Staged], object]:
    facts = serialize.snapshot({"config": dict(release.config), "model_card": dict(release.card)})
    if release.form.format == "safetensors":
        from safetensors.torch import save

        tensors: dict[str, Tensor] = forms.plain(release.weights)
        config = json_text(release.config)
        header = {"format": "pt", "version": release.version, "config": config}
        return lambda file: file.write(save(tensors, header))
    state = serialize.snapshot(
        file_contents(
            manifest, **facts, model_state_dict=dict(release.weights), model_version=release.version
        )
    )
    compress = release.form.compress
    return lambda file: serialize.dump(state, file, compress=compress)


def _manifest(release: Release) -> Manifest:
    return Manifest(
        file=release.file,
        tier=PRODUCTION,
        tags=(f"v{release.version}",),
        policies=("",),
        reasons=(release.reason,),
        sequence=0,
        **{name: getattr(release, name) for name in FACTS},
        created=utc_now(),
        config=release.config,
        metadata={
            "release": asdict(release.form),
            "source": release.source,
            "trained_with": release.trained_with,
            "reason": release.reason,
            **({objects.NETWORK: release.network} if release.network else {}),
        },
    )


def verify(root: Path, manifest: Manifest, *, run: bool = False) -> None:
    """Check every digest of a release and, with `run`, its golden outputs in the network as it loads.

    Raises CheckpointError with what is wrong, UnregisteredError when the code of its network is not here.
    """
    store.verify(root, manifest)
    if run:
        golden.verify(root, manifest)
