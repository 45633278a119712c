"""List what can be chosen and set: groups of conf/ with their options, and every key with its type."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import registry
from peakpoint.base.errors import UserError
from peakpoint.base.files import CONF
from peakpoint.checkpointing import policies  # noqa: F401 (registers)
from peakpoint.models import catalogue as networks  # noqa: F401 (registers)
from peakpoint.optimizers import catalogue as optimizers  # noqa: F401 (registers)
from peakpoint.trainer.config import schema as c
from peakpoint.trainer.data import sources  # noqa: F401 (registers)
from peakpoint.trainer.listeners import console, mlflow, tensorboard, wandb  # noqa: F401 (registers)

CHOICES: dict[str, str] = {
    "model": "model",
    "data": "data",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "policy": "checkpoint/policy",
    "logger": "logger",
}
"""The group of conf/ in which a component of a kind is chosen."""

LISTS = {"policy": "checkpoint.policy", "logger": "logger"}
"""A kind of component of which a run has several -> the key that holds them by name."""


def register_schemas() -> None:
    """Give Hydra the classes of all settings; they have a group of their own that no list of choices shows.

    A component has the name that it is registered under, and one without a file in conf/ is a choice with the
    values that its class has.
    """
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=c.Config, package="_global_")
    pruning = OmegaConf.structured(c.Pruning)
    for kind in c.PRUNING:  # settings of any name may be given, which the component checks
        pruning[f"{kind}_options"] = {}
        OmegaConf.set_struct(pruning[f"{kind}_options"], False)
    store.store(group="schema/pruning", name="pruning", node=pruning)
    store.store(group="schema/search", name="search", node=c.Search)
    store.store(group="schema/checkpoint", name="checkpoint", node=c.Checkpoint)
    for kind, group in CHOICES.items():
        for name, settings in registry.table(kind).items():
            if not is_dataclass(settings):
                continue
            node = _structured(kind, name, settings)
            if kind not in LISTS:
                node.name = name
            store.store(group=f"schema/{kind}", name=name, node=node)
            if not (CONF / group / f"{name}.yaml").exists():
                store.store(group=group, name=name, node={name: node} if kind in LISTS else node)
    before = {
        "search": {"_target_": "peakpoint.trainer.search.sweep.BeforeSearch"},  # first: it ends the process
        "run": {"_target_": "peakpoint.trainer.run_directory.Before"},
        "sweep": {"_target_": "peakpoint.trainer.sweep.start.BeforeSweep"},
    }
    store.store(group="hydra/callbacks", name="peakpoint", node=before, package="hydra.callbacks")


def _structured(kind: str, name: str, settings: Any) -> Any:
    """Return a component's class as Hydra stores it. Raises UserError for a field without a type of YAML."""
    try:
        return OmegaConf.structured(settings)
    except OmegaConfBaseException as error:
        fault = str(error).splitlines()[0].rstrip(".")
    raise UserError(
        f"The {kind} {name} ({settings.__module__}.{settings.__qualname__}) cannot be configured: {fault}. "
        "Give its fields types of YAML, such as int, float, str, bool, list[int] and dict[str, int]."
    )


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules, and offer what they register. Raises CheckpointError for one that is not there."""
    registry.load(modules)
    register_schemas()


def all_choices() -> str:
    """Return a line for each group, and for each component of pruning, with its options, for --help."""
    named = {name: choices(name) for name in groups()}
    named |= {f"pruning.{kind}": sorted(registry.table(kind)) for kind in c.PRUNING}
    return "\n".join(f"{name}: {', '.join(options)}" for name, options in named.items())


def groups() -> list[str]:
    """Return the groups of conf/ that a choice is made in, such as optimizer and checkpoint/policy."""
    folders = sorted(p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir())
    return [name for name in folders if not name.startswith(("hydra", "release", "schema", "__"))]


def choices(group: str) -> list[str]:
    """Return the options of a group: files in conf/, and what plugins have registered."""
    found = {path.stem for path in (CONF / group).glob("*.yaml")}
    registered = ConfigStore.instance().repo
    for part in group.split("/"):
        registered = registered.get(part, {})
    return sorted(found | {name.removesuffix(".yaml") for name in registered if name.endswith(".yaml")})


def leaves() -> dict[str, Any]:
    """Return every key of the configuration and of all components with its type."""
    found = _fields(c.Config, "")
    for kind in CHOICES:
        for name, settings in registry.table(kind).items():
            found |= _fields(settings, f"{LISTS[kind]}.{name}." if kind in LISTS else f"{kind}.")
    return found


def _fields(kind: Any, prefix: str) -> dict[str, Any]:
    """Return the types of a dataclass's fields by their keys, those of the dataclasses in it too."""
    found: dict[str, Any] = {}
    for name, inner in get_type_hints(kind).items() if is_dataclass(kind) else ():
        node = next((each for each in get_args(inner) if is_dataclass(each)), inner)  # of an optional one
        found |= {f"{prefix}{name}": inner, **_fields(node, f"{prefix}{name}.")}
    return found
