"""Writes the checkpoints and releases of the library to a directory: its run, its lock and its store."""

import contextlib
import logging
import os
import secrets
import threading
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from peakpoint.base import given
from peakpoint.base.disk_space import tensor_bytes
from peakpoint.base.errors import CheckpointError
from peakpoint.base.lock import one_writer, present
from peakpoint.base.text import utc_now
from peakpoint.checkpointing.policy import Save
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.state.objects import git_commit
from peakpoint.checkpointing.storage import listing, store
from peakpoint.checkpointing.storage.listing import LIBRARY
from peakpoint.checkpointing.storage.manifest import MILESTONE, Manifest, file_contents
from peakpoint.checkpointing.storage.naming import file_stem
from peakpoint.checkpointing.storage.store import Store
from peakpoint.deployment.inference import builders, golden, network
from peakpoint.deployment.inference.form import KEPT, Form
from peakpoint.deployment.inference.network import Description
from peakpoint.deployment.release import card as cards
from peakpoint.deployment.release import card_page, release
from peakpoint.deployment.release.release import Release

log = logging.getLogger("peakpoint")

MODE = "mode"
"""Key in a milestone's metadata for the direction of its metric."""


class Opened:
    """The store of a directory, locked against other processes until nobody refers to this any more.

    A forked child has no lock: its `process` is another, and it opens the directory anew.
    """

    def __init__(self, root: Path) -> None:
        self.process = os.getpid()
        with ExitStack() as stack:
            stack.enter_context(one_writer(root))
            self.store = Store(root, run_in(root))
            weakref.finalize(self, stack.pop_all().close)


_OPENED: "weakref.WeakValueDictionary[Path, Opened]" = weakref.WeakValueDictionary()
_ONE_AT_A_TIME = threading.Lock()


def opened(root: Path) -> Opened:
    """Open a directory that exists, once a process: two managers of one directory share its numbering.

    Raises BusyError, naming the holder, when another process has it open.
    """
    with _ONE_AT_A_TIME:
        key = root.resolve()
        found = _OPENED.get(key)
        if found is None or found.process != os.getpid():
            found = _OPENED[key] = Opened(root)
        return found


def run_in(root: Path) -> str:
    """Return the library's run in a directory, or a new one."""
    runs = [m.run for m in [*listing.manifests(root), *listing.releases(root)] if m.run.startswith(LIBRARY)]
    return runs[-1] if runs else LIBRARY + secrets.token_hex(8)


class Recorder:
    """Writes the checkpoints of one training to one directory, whatever tier they are of."""

    def __init__(self, root: Path, *, compress: bool) -> None:
        self._named, self._root = root, root.absolute()  # the working directory may change
        self._compress = compress
        Store(root, run_in(root))  # a directory that cannot be written to is refused before the training
        self._git_commit = git_commit()
        self._opened: Opened | None = None
        # The last milestone, and the digest of its contents.
        self._last: tuple[Manifest, str] | None = None

    @property
    def root(self) -> Path:
        """Return the directory as it was named, or its present path after a move or a change of folder."""
        place = present(self._root, or_named=True)
        with contextlib.suppress(OSError):  # the working directory may be gone
            if self._named.absolute() == place:
                return self._named
        return place

    @property
    def store(self) -> Store:
        """Return the store, locked from the first write on, so that readers do not keep writers out."""
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = opened(self._root)
        return self._opened.store

    def close(self) -> None:
        """Unlock the directory."""
        self._opened = None

    def mine(self, tier: str) -> list[Manifest]:
        """Return the checkpoints of this run in a tier, oldest first."""
        return [m for m in self.store.mine() if m.tier == tier and self.store.path(m).exists()]

    def role(
        self,
        save: Save,
        *,
        epoch: int,
        step: int,
        metrics: dict[str, float],
        config: Mapping[str, Any] | None,
        metadata: Mapping[str, Any],
    ) -> Manifest:
        """Return the manifest of a checkpoint that is still to be written."""
        role = Manifest(
            file=self.store.free_name(save.tier, file_stem(save.stem)),
            tier=save.tier,
            tags=(save.tag,),
            policies=("",),
            reasons=(save.reason,),
            sequence=0,
            run=self.store.run,
            epoch=int(epoch),
            global_step=int(step),
            metrics=metrics,
            created=utc_now(),
            git_commit=self._git_commit,
            config=None if config is None else given.mapping("config", config),
            metadata=metadata,
        )
        role.to_json()  # what it cannot hold is refused before the state is copied
        return role

    def save(self, role: Manifest, state: dict[str, Any], model: nn.Module, pointer: str | None) -> Manifest:
        """Save a checkpoint; durable on return.

        A milestone with the same state as the last one shares its bytes, so that several metrics that peak
        together are written once.
        """
        objects.check_finite(model)
        state = file_contents(
            role,
            timestamp=role.created,
            metadata=role.metadata,
            model_state_dict=objects.weights(model),
            **state,
        )
        copied = serialize.SnapshotBuffers().snapshot(state).state
        digest = _digest(copied) if role.tier == MILESTONE else ""
        saved = self._same_again(role, digest)
        if saved is None:
            (saved,) = self.store.save(
                [role],
                lambda file: serialize.dump(copied, file, compress=self._compress),
                expected=tensor_bytes(state),
            )
        if pointer is not None:
            self.store.set_pointer(role.tier, pointer, saved)
        if role.tier == MILESTONE:
            self._last = saved, digest
        builders.remember(self.root, saved, model)
        return saved

    def _same_again(self, role: Manifest, digest: str) -> Manifest | None:
        """Give the role the last milestone's bytes if they have this digest and verify; else return None."""
        if self._last is None or self._last[1] != digest:
            return None
        last = self._last[0]
        try:
            store.verify(self.root, last, threads=1)
            return self.store.share(last, role)
        except CheckpointError:  # deleted, damaged, or no space for a copy: written anew
            return None

    def release(
        self,
        model: nn.Module,
        *,
        version: str,
        config: Mapping[str, Any],
        metrics: dict[str, float],
        card: Mapping[str, Any],
        example_inputs: Any,
    ) -> Manifest:
        """Write the weights alone as a release, with golden outputs for images or for its example inputs."""
        run = self.store.run  # locks the directory
        config, card = given.mapping("config", config), given.mapping("model_card", card)
        objects.check_finite(model)
        facts = {"version": version, "metrics": metrics, "git_commit": self._git_commit}
        made = Release(
            version=version,
            name=str(config.get("name") or objects.class_name(model)),
            weights=objects.weights(model),
            config=config,
            form=Form(format="pt", dtype=KEPT, compress=self._compress),
            reason=f"release {version}",
            run=run,
            metrics=metrics,
            git_commit=self._git_commit,
            network=objects.class_name(model),
        )
        made, facts["golden_outputs"] = _with_golden(made, model, example_inputs)
        created = utc_now()
        card = {**card, **facts, "file": made.file, "created": created}
        page = card_page.markdown(cards.of_any(card, name=made.name, version=version, metrics=metrics))
        manifest = release.write(self.root, replace(made, card=card, card_text=page))
        builders.remember(self.root, manifest, model)
        return manifest


def _with_golden(made: Release, model: nn.Module, example_inputs: Any) -> tuple[Release, str]:
    """Return the release with the source of its golden outputs, and a phrase that names the source."""
    description = _rebuilt(made)
    if description is not None and example_inputs is not None:
        raise CheckpointError(
            "example_inputs: the config says which images this network takes, and golden inputs are made of "
            "that: leave example_inputs out."
        )
    if description is not None:
        return replace(made, description=description), f"for {made.golden_inputs} images"
    if example_inputs is not None:
        content = golden.of_example(objects.unwrap(model), example_inputs)
        return replace(made, golden=content), "for the example inputs that its maker gave"
    return made, "none: no example_inputs were given"


def _rebuilt(made: Release) -> Description | None:
    """Return the network's description in a release's config, None unless it fits these weights."""
    try:
        description = network.described(made.config)
        network.build(description, made.weights)
    except CheckpointError:
        return None
    return description


def _digest(copied: Mapping[str, Any]) -> str:
    """Return the digest of a milestone's contents without metric, time and random numbers.

    It is by value: a weight may change while its identity and its version stay.
    """
    notes = {key: value for key, value in (copied["metadata"] or {}).items() if key != MODE}
    its_own = ("timestamp", "metrics", "metadata", "rng_state")
    return serialize.digest([notes, {key: value for key, value in copied.items() if key not in its_own}])
