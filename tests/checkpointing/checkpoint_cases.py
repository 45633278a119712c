"""Small checkpoints, and a manager whose training is a tensor that counts."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from peakpoint.base.files import STAGED_PREFIX
from peakpoint.checkpointing.events import EpochEnd, EvalEnd, Fact, StepEnd
from peakpoint.checkpointing.manager import Manager, Options
from peakpoint.checkpointing.policy import Decision, Policy, Save
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing, store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.policies import policy_cases as case


def manifest(file: str = "training/a.pt", *, run: str = "run", **facts) -> Manifest:
    """A manifest as the manager hands it to the store: bytes, digest and sequence are still to come."""
    plain = {"tags": ("interval",), "policies": ("interval",), "reasons": ("epoch 1, every 1",)}
    plain |= {"epoch": 1, "global_step": 10, "sequence": 0} | facts
    return Manifest(file=file, tier=file.split("/")[0], run=run, **plain)


def saved(target: Store, file: str = "training/a.pt", value: float = 1.0, **facts) -> Manifest:
    """A real checkpoint on disk whose one weight has this value."""
    state = {"model_state_dict": {"w": torch.full((8,), value)}}
    return target.save([manifest(file, run=target.run, **facts)], lambda f: serialize.dump(state, f))[0]


def damage(path: Path, *, flip: bool = True) -> None:
    """Flip a bit in the middle, or cut the second half off; other names of the file stay whole."""
    data = bytearray(path.read_bytes())
    path.unlink()
    data[len(data) // 2] ^= 1
    path.write_bytes(data if flip else data[: len(data) // 2])


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Within, the operating system refuses to let a file of this process grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Asks:
    """A policy that saves at given steps, under given roles, and keeps all."""

    def __init__(self, saves: dict[int, list[Save]]) -> None:
        self.saves = saves
        self.tags = {save.tag for wanted in saves.values() for save in wanted}

    def decide(self, event) -> list[Decision]:
        return list(self.saves.get(event.step, [])) if isinstance(event, StepEnd) else []

    def keeps(self, manifests):
        return dict.fromkeys(manifests, "asked for")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class World:
    """A run: `epoch()` trains one, of ten steps, and lets the manager look at it."""

    def __init__(self, root: Path, *, run: str = "run", **policies: Policy) -> None:
        self.root = root
        self.run = run
        self.policies = policies
        self.weight = torch.zeros(64)
        self.extra: dict = {}
        self.facts: list[Fact] = []
        self.epochs = 0
        self.attempt()

    def attempt(
        self, *, background=False, on_error="warn", resumed_from=None, name=None, when_busy="wait"
    ) -> "World":
        """A new manager, as a new process would have; chain it to set options."""
        options = Options(
            background=background,
            on_error=on_error,
            git_commit="abc",
            resumed_from=resumed_from,
            name=name,
            when_busy=when_busy,
        )
        self.manager = Manager(Store(self.root, self.run), self.policies, self.gather, options=options)
        self.manager.subscribe(self.facts.append)
        return self

    def gather(self) -> dict:
        return {"model_state_dict": {"w": self.weight}, "epoch": self.epochs, **self.extra}

    @property
    def counters(self) -> dict:
        """What a checkpoint of this moment says of the policies."""
        return {name: policy.state_dict() for name, policy in self.policies.items()}

    def epoch(self, accuracy: float | None = None, *, sparsity: float = 0.0, **metrics):
        """Train an epoch; returns the manager's Stop or None."""
        self.epochs += 1
        self.weight += 1
        if accuracy is not None:
            metrics["accuracy"] = accuracy
        step = 10 * self.epochs
        return self.manager.handle(
            EvalEnd(self.epochs, step, metrics, sparsity, 0), EpochEnd(self.epochs, step)
        )

    def stated(self, kind: type) -> list:
        """The facts of a kind that were published so far, after all is written."""
        self.manager.drain()
        return [fact for fact in self.facts if isinstance(fact, kind)]

    @property
    def kept(self) -> list[Manifest]:
        """Manifests on disk, oldest first."""
        self.manager.drain()
        return listing.manifests(self.root)

    def files(self, tier: str) -> list[str]:
        """Names in a tier's folder, without pointers and manifests."""
        self.manager.drain()
        return sorted(p.name for p in (self.root / tier).glob("*.pt") if not p.is_symlink())

    def weight_in(self, file: str) -> float:
        """The weight that a checkpoint file holds."""
        value: float = serialize.load(self.root / file)["model_state_dict"]["w"][0].item()
        return value


def points(link):
    """The name that a pointer holds."""
    return str(link.readlink())


def whole(world):
    """Every manifest has its bytes, and every file its manifest."""
    for manifest in world.kept:
        store.verify(world.root, manifest)
    for tier in ("training", "milestone"):
        names = {p.stem for p in (world.root / tier).glob("*.json")}
        assert {name.removesuffix(".pt") for name in world.files(tier)} == names
    assert list(world.root.rglob(f"{STAGED_PREFIX}*")) == []
    return True


ALL = {
    "interval": case.interval(epochs=1),
    "best": case.best(accuracy="max", loss="min"),
    "top_k": case.top_k(2),
    "sparsity": case.sparsity(0.5, 0.7),
}
