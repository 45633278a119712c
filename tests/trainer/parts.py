"""A run's parts without the program around them: composed from conf/, checked and built."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from peakpoint.checkpointing.events import Interrupted, RunEnd, StepEnd
from peakpoint.checkpointing.manager import Manager, Options
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.build import Parts, build
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.choices import register_schemas
from peakpoint.trainer.listeners.events import Published, Publisher
from tests.conftest import ROOT, TINY


def compose(*overrides: str) -> DictConfig:
    """What Hydra composes from a command line, untouched."""
    GlobalHydra.instance().clear()
    register_schemas()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def parts(*overrides: str, base: Iterable[str] = TINY) -> Parts:
    """What a run of 24 small steps consists of."""
    cfg = compose(*base, *overrides)
    plain: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return build(checked(cfg), plain)


@dataclass
class Ran:
    """A training that was heard of: its parts, what was published, and how it ended."""

    parts: Parts
    heard: list[Published] = field(default_factory=list)
    end: RunEnd | Interrupted | None = None

    def __call__(self, event: Published) -> None:
        self.heard.append(event)

    def close(self) -> None:
        pass

    def of(self, kind: type) -> list[Any]:
        """What was published of a kind."""
        return [event for event in self.heard if isinstance(event, kind)]


def fit(made: Parts, folder: Path, *, at: dict[int, Callable[[], None]] | None = None) -> Ran:
    """Train to the end, with a manager of its own; `at` calls a function after a step."""
    ran = Ran(made)

    class Meddler:
        def __call__(self, event: Published) -> None:
            if isinstance(event, StepEnd) and at and event.step in at:
                at[event.step]()

        def close(self) -> None:
            pass

    options = Options(background=False, on_error="stop", git_commit=None, resumed_from=None)
    manager = Manager(Store(folder, "run"), made.policies, made.state.gather, options=options)
    ran.end = made.loop.fit(Publisher([ran, Meddler()], manager))
    manager.close()
    return ran


def interrupted(made: Parts, folder: Path, step: int) -> dict[str, Any]:
    """Train until a signal comes at `step`; returns the checkpoint of that moment, read from disk."""

    def signal() -> None:
        made.loop.signal = 15

    ran = fit(made, folder, at={step: signal})
    assert isinstance(ran.end, Interrupted)
    return serialize.load(folder / "training" / "latest.pt")
