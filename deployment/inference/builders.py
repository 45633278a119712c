"""Builders of networks: registered by name, or remembered by the process that saved the file.

A process holds weak references to the networks that it saved: one that is still alive is copied, else its
class is called. In another process the network must be registered as a model under config["model"]["name"],
config["name"], or the name of its class in snake case.
"""

import contextlib
import copy
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peakpoint import models
from peakpoint.base import registry
from peakpoint.base.errors import CheckpointError, UnregisteredError, first_line
from peakpoint.base.given import as_mapping
from peakpoint.checkpointing.state import objects
from peakpoint.checkpointing.storage.manifest import Manifest

YOURSELF = "build the network yourself, and load_checkpoint(path, model)"

_NETWORKS: "weakref.WeakValueDictionary[Any, nn.Module]" = weakref.WeakValueDictionary()
_CLASSES: "weakref.WeakValueDictionary[Any, type[nn.Module]]" = weakref.WeakValueDictionary()


def remember(root: Path, manifest: Manifest, model: nn.Module) -> None:
    """Remember a saved network without keeping it alive."""
    network = objects.unwrap(model)
    for key in _keys(root, manifest, objects.class_name(network)):
        _NETWORKS[key], _CLASSES[key] = network, type(network)


def _keys(root: Path, manifest: Manifest, class_name: Any) -> tuple[Any, ...]:
    """Return the keys of a network: the digest of its file, and its root with the name of its class."""
    return manifest.digest, (root.resolve(), class_name)


def rebuilt(
    root: Path, manifest: Manifest, weights: Mapping[str, Any], saved: Mapping[str, Any]
) -> nn.Module:
    """Return a network with these weights, in evaluation mode; `saved` holds its `config` and `metadata`.

    Raises UnregisteredError when it is not registered, and CheckpointError when its builder makes another.
    """
    names, options = _recipe(saved)
    refusal: CheckpointError = UnregisteredError(_unbuildable(root / manifest.file, saved))
    for name in names:
        if models.registered(name) and not models.reads_images(name):
            try:
                return built(partial(models.create, name, options=options), weights)
            except CheckpointError as error:
                refusal = CheckpointError(f"{error} To load it all the same: {YOURSELF}.")
    keys = _keys(root, manifest, _class_name(saved))
    for known in filter(None, map(_NETWORKS.get, keys)):
        with contextlib.suppress(CheckpointError):
            return built(partial(copy.deepcopy, known), weights, alike=known)
    for kind in filter(None, map(_CLASSES.get, keys)):
        with contextlib.suppress(CheckpointError):  # a config need not be the arguments of its class
            return built(partial(_made_of, kind, options), weights)
    raise refusal


def _made_of(kind: type[nn.Module], options: Mapping[str, Any]) -> nn.Module:
    return kind(**options)


def _recipe(saved: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the names that a network may be registered under, and its options."""
    config = dict(as_mapping(saved.get("config")))
    model = config.get("model")
    options = dict(model) if isinstance(model, Mapping) else config
    names = (options.pop("name", None), _class_name(saved))
    if isinstance(options.get("options"), Mapping):
        options = dict(options["options"])
    return [name for name in names if isinstance(name, str)], options


def _class_name(saved: Mapping[str, Any]) -> str | None:
    noted = as_mapping(saved.get("metadata")).get(objects.NETWORK)
    return noted if isinstance(noted, str) else None


def _unbuildable(file: Path, saved: Mapping[str, Any]) -> str:
    unknown = [name for name in _recipe(saved)[0] if not models.registered(name)]
    if unknown:
        return unregistered(unknown[0], run_config(saved))
    return f"{file.name} does not record its network: {YOURSELF}."


def run_config(saved: Mapping[str, Any]) -> Any:
    """Return the configuration of the run of a checkpoint or a release, None where it is not known."""
    trained_with = as_mapping(saved.get("metadata")).get("trained_with")
    return trained_with.get("config") if isinstance(trained_with, Mapping) else saved.get("config")


def unregistered(name: str, config: Any) -> str:
    """Return the message for an unregistered network; the `config` of its run names the plugins."""
    return f"{registry.unknown('model', name)} {registry.hint(config)}, or {YOURSELF}."


def built(
    make: Callable[[], nn.Module],
    weights: Mapping[str, Any] | None,
    what: str = "network that its code builds",
    alike: nn.Module | None = None,
) -> nn.Module:
    """Return the network that `make` makes, in evaluation mode; the global generators are not advanced.

    `weights` are loaded into it, and before that compared with the network `alike`, or with one on the meta
    device, so that a file cannot demand more memory than its size. Raises CheckpointError when the network
    cannot be made or the weights differ.
    """
    if weights is None:
        return _made(make)
    if alike is None:
        # A builder that reads its own tensors fails on the meta device, and is not compared before.
        with contextlib.suppress(CheckpointError), torch.device("meta"):
            alike = _made(make)
    if alike is not None:
        _compare(alike, weights, what)
    network = _made(make)
    objects.load_weights(network, weights)
    return network


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            return make().eval()
    except Exception as error:  # the options come from a file, and any builder may trip over them
        why = f"{first_line(error).rstrip('.')}. {registry.raised_in(error)}".rstrip()
        raise CheckpointError(f"The network cannot be rebuilt: {why}") from None


def _compare(network: nn.Module, weights: Mapping[str, Any], what: str) -> None:
    for name, expected in network.state_dict().items():
        if not isinstance(expected, Tensor):  # a module's extra state may be anything
            continue
        found = weights.get(name)
        shape = tuple(found.shape) if isinstance(found, Tensor) else "missing"
        if shape != tuple(expected.shape):
            raise CheckpointError(
                f"The checkpoint is of another network: {name} is {shape} in the file, and "
                f"{tuple(expected.shape)} in the {what}."
            )
