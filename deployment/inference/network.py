"""Networks rebuilt from a checkpoint or a release alone."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peakpoint import models
from peakpoint.base import given
from peakpoint.base import registry as modules
from peakpoint.base.errors import CheckpointError, UnregisteredError
from peakpoint.checkpointing.policies.sparsity import peak
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.storage import aliases, listing, locate, store
from peakpoint.checkpointing.storage.manifest import PRODUCTION, Manifest
from peakpoint.deployment.inference import builders, weights

LARGEST = 2**26
"""Largest number of values of an image, so that a hostile file cannot exhaust memory."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The facts that build a network of `models` and prepare its images.

    `image_shape` is (channels, height, width); `mean` and `std` are those of each channel, in [0, 1] units.
    """

    name: str
    options: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def config(self) -> dict[str, Any]:
        """Return the description as plain JSON types: the `.config.json` of a release."""
        return {
            "model": {"name": self.name, "options": dict(self.options)},
            "input": {
                "layout": "NCHW",
                "dtype": "float32",
                "shape": list(self.image_shape),
                "scale": "bytes / 255, less mean, by std",
                "mean": list(self.mean),
                "std": list(self.std),
            },
            "output": {"kind": "logits", "classes": list(self.classes)},
        }


class UndescribedError(CheckpointError):
    """A config does not describe a network for images; only its own code can rebuild it."""


def described(config: Mapping[str, Any]) -> Description:
    """Return the description in a release's config.

    Raises UndescribedError when it has none, and CheckpointError when it is invalid.
    """
    try:
        model, fed, out = (_mapping(config)[key] for key in ("model", "input", "output"))
        channels, height, width = map(int, _mapping(fed)["shape"])
        found = Description(
            name=str(_mapping(model)["name"]),
            options=dict(_mapping(model["options"])),
            image_shape=(channels, height, width),
            classes=tuple(map(str, _mapping(out)["classes"])),
            mean=tuple(map(float, fed["mean"])),
            std=tuple(map(float, fed["std"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise UndescribedError(
            "This checkpoint does not record its network, the shape of its images and its classes: load its "
            "network with load_model(path), or build it yourself and load_checkpoint(path, model)."
        ) from None
    _check(found)
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else raise TypeError: tensors and text can be indexed as well."""
    if not isinstance(value, Mapping):
        raise TypeError(f"a {type(value).__name__} is no mapping")
    return value


def _check(found: Description) -> None:
    if min(found.image_shape) < 1 or math.prod(found.image_shape) > LARGEST:
        sides = " x ".join(map(str, found.image_shape))
        raise CheckpointError(f"The network cannot be rebuilt: no network takes images of {sides}.")
    if not {len(found.mean), len(found.std)} <= {found.image_shape[0]}:
        raise CheckpointError("The network cannot be rebuilt: it takes a mean and std for each channel.")
    if not found.classes:
        raise CheckpointError("The network cannot be rebuilt: it has no classes.")
    if not all(map(math.isfinite, (*found.mean, *found.std))) or min(found.std) <= 0:
        raise CheckpointError("The network cannot be rebuilt: mean and std must be finite, and std positive.")


def trained(saved: Mapping[str, Any]) -> Description:
    """Return the description in a checkpoint's contents: the trainer's, or a config like that of a release.

    Raises CheckpointError when there is none.
    """
    try:
        model, facts = dict(_mapping(_mapping(saved["config"])["model"])), _mapping(saved["metadata"])
        config = {
            "model": {"name": model.pop("name"), "options": model},
            "input": {"shape": facts["image_shape"], "mean": facts["mean"], "std": facts["std"]},
            "output": {"classes": facts["classes"]},
        }
    except (KeyError, TypeError, ValueError):
        config = dict(given.as_mapping(saved.get("config")))
    return described(config)


def build(
    description: Description, weights: Mapping[str, Any] | None = None, config: Any = None
) -> nn.Module:
    """Return the network in evaluation mode, with these weights in float32 or fresh ones.

    The global generators are not advanced. `weights` are first compared with it on the meta device; `config`
    is that of its run, which names the plugins. Raises UnregisteredError when no network of that name is
    registered, and CheckpointError when its options differ or the weights are those of another network.
    """
    if not models.registered(description.name):
        raise UnregisteredError(builders.unregistered(description.name, config))

    def make() -> nn.Module:
        return models.create(
            description.name,
            image_shape=description.image_shape,
            num_classes=len(description.classes),
            options=description.options,
        )

    return builders.built(make, weights, f"{description.name} that it describes")


def contents(root: Path, manifest: Manifest) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return the weights of a verified checkpoint on the CPU, and its `config` and `metadata`."""
    file = root / manifest.file
    if manifest.tier == PRODUCTION:
        return weights.read(file), {"config": manifest.config or {}, "metadata": manifest.metadata or {}}
    saved = serialize.load(file)
    return weights.within(saved, file), saved


def load_model(
    path: str | Path, device: str | torch.device = "cpu", plugins: Sequence[str] = ()
) -> nn.Module:
    """Return the network of a release or of any checkpoint, verified, in evaluation mode, float32.

    `path` is a file, a pointer, or a run directory: its champion, else its highest release, else its best
    checkpoint by the monitored metric. A user's own network is rebuilt in the process that saved it, and
    wherever it is registered; `plugins` are modules to import first, which register networks. Raises
    CheckpointError. Never executes code from a file.
    """
    try:
        modules.load(plugins)
    except Exception as error:  # a bug of a plugin
        if plugin := modules.raised_in(error):
            error.add_note(plugin)  # the last line of the traceback
        raise
    return load(*resolve(given.path(path)), device)


def load(root: Path, manifest: Manifest, device: str | torch.device = "cpu") -> nn.Module:
    """Return the network of a verified checkpoint. Raises UnregisteredError when it is not registered."""
    values, saved = contents(root, manifest)
    network = None
    with contextlib.suppress(UndescribedError, UnregisteredError):
        network, _ = with_weights(values, saved)
    if network is None:
        network = builders.rebuilt(root, manifest, values, saved)
    objects.move(network, device)
    return network


def rebuilt(root: Path, manifest: Manifest) -> tuple[nn.Module, Description]:
    """Return the network of a verified checkpoint on the CPU, in evaluation mode, and its description."""
    return with_weights(*contents(root, manifest))


def with_weights(values: Mapping[str, Any], saved: Mapping[str, Any]) -> tuple[nn.Module, Description]:
    """Return the network that a file describes, with its weights copied into float32, and its description."""
    description = trained(saved)
    return build(description, values, builders.run_config(saved)), description


def resolve(path: Path) -> tuple[Path, Manifest]:
    """Return the checkpoint root and the verified manifest of a path, as for `load_model`."""
    if not path.is_dir():
        return locate.locate(path)
    root = listing.checkpoint_root(path)
    release = aliases.release_of(root, aliases.CHAMPION) or next(reversed(listing.releases(root)), None)
    if release is None:
        return root, best(root)
    store.verify(root, release)
    return root, release


def best(root: Path) -> Manifest:
    """Return the verified best checkpoint of a run of the trainer: at the target sparsity, or over all.

    The newest checkpoint holds the monitored metric. Raises CheckpointError when there is none.
    """
    metric, mode, target = monitor(root)
    chosen = peak(listing.own(root, listing.manifests(root)), metric=metric, mode=mode, target=target)
    if chosen is None:
        raise CheckpointError(f"{root} holds no best {metric} yet: name a file.")
    store.verify(root, chosen)
    return chosen


def monitor(root: Path) -> tuple[str, str, float]:
    """Return the monitored metric of a run of the trainer, its mode, and the target sparsity, 0 for none.

    Raises CheckpointError when the newest checkpoint does not hold them.
    """
    newest = locate.newest_sound(root)
    try:
        config = serialize.load(root / newest.file)["config"]
        monitor = _mapping(_mapping(_mapping(config)["checkpoint"])["monitor"])
        metric, mode = (str(monitor[key]) for key in ("metric", "mode"))
        target = float(_mapping(config["pruning"])["target"])
        if not 0 <= target <= 1:
            raise ValueError(f"{target} is no sparsity")
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{root} does not say which checkpoint is its best: name a file.") from None
    return metric, mode, target


def describe(path: str | Path) -> Description:
    """Return the description of the network of a path, as for `load_model`."""
    return trained(contents(*resolve(Path(path)))[1])


def prepare(images: Tensor, description: Description) -> Tensor:
    """Return images (N, H, W, C) uint8 as (N, C, H', W') float32, normalised and resized for the network."""
    mean, std = (torch.tensor(v, device=images.device) for v in (description.mean, description.std))
    scaled = ((images.to(torch.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
    size = description.image_shape[1:]
    if tuple(scaled.shape[2:]) != size:
        shrinks = any(new < old for new, old in zip(size, scaled.shape[2:], strict=True))
        scaled = F.interpolate(scaled, size, mode="bilinear", align_corners=False, antialias=shrinks)
    return scaled.contiguous()
