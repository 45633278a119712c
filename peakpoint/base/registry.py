"""The registry: every component by its kind and name, and the modules of the user's own that add to it.

    @register("optimizer", "lion")
    @dataclass(kw_only=True)
    class Lion(Optimizer):
        beta: float

        def build(self, groups): ...

A component with settings is a dataclass that owns their names, types and ranges, and builds what they
describe; its values are in conf/<group>/<name>.yaml, or the defaults of its fields. Training, resuming,
`load_model` and every command find a component here, whoever registered it. Needs no torch.
"""

import importlib
import pkgutil
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar

from peakpoint.base.bounded import literal
from peakpoint.base.errors import CheckpointError, PeakpointError, UserError
from peakpoint.base.given import of_kind
from peakpoint.base.text import nearest

T = TypeVar("T")


def _is_function(component: Any) -> bool:
    return callable(component) and not isinstance(component, type)


@dataclass(frozen=True)
class Kind:
    """The methods and attributes that a dataclass of a kind has; what `instead` returns True for needs none.

    `base` is the class that brings them, "" where there is none.
    """

    methods: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    base: str = ""
    instead: Callable[[Any], bool] = lambda _: False


KINDS = {
    "model": Kind(("build", "check_size"), ("name",), "peakpoint.models.Model", callable),
    "data": Kind(("read",), ("name", "val_fraction", "facts"), "peakpoint.trainer.data.settings.Data"),
    "optimizer": Kind(
        ("build",), ("name", "lr", "weight_decay", "clip_norm"), "peakpoint.optimizers.settings.Optimizer"
    ),
    "scheduler": Kind(("build",), ("name", "warmup_epochs"), "peakpoint.optimizers.settings.Scheduler"),
    "criterion": Kind(("score",), ("needs",), "peakpoint.optimizers.pruning.criterion.Criterion"),
    "schedule": Kind(("__call__",), instead=_is_function),
    "allocation": Kind(("__call__",), instead=_is_function),
    "policy": Kind(("build", "at_most"), base="peakpoint.checkpointing.policy.Policy"),
    "logger": Kind(("build", "check"), base="peakpoint.trainer.listeners.events.Logger"),
}
"""What can be registered. A model may be any callable, a schedule and an allocation a function."""

_COMPONENTS: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_RETIRED: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str) -> Callable[[T], T]:
    """Return a decorator that offers a component as `kind=name`; the same class again takes its own place.

    Raises UserError when another component has the name, or when it lacks what its kind needs.
    """
    if kind not in KINDS:
        raise UserError(f"There is no kind of component named {kind}{nearest(kind, KINDS)}")

    def add(component: T) -> T:
        if name in _COMPONENTS[kind] and _origin(component) != (other := _origin(_COMPONENTS[kind][name])):
            raise UserError(f"The {kind} {name} is already registered, by {other[0]}: choose another name.")
        if fault := _fault(KINDS[kind], component):
            raise UserError(f"The {kind} {name} ({'.'.join(_origin(component))}) {fault}.")
        _COMPONENTS[kind][name] = component
        return component

    return add


def _fault(kind: Kind, component: Any) -> str | None:
    """Return what keeps a component from being one of its kind, and the remedy; None for one that is."""
    if not is_dataclass(component) and kind.instead(component):
        return None
    settings = [field.name for field in fields(component)] if is_dataclass(component) else []
    abstract: frozenset[str] = getattr(component, "__abstractmethods__", frozenset())
    present = {*dir(component), *settings} - abstract
    lacking = [n for n in kind.methods if n not in present or not callable(getattr(component, n, None))]
    lacking += [*sorted(abstract - {*lacking}), *(n for n in kind.attributes if n not in present)]
    if lacking:
        form = f"a dataclass derived from {kind.base}," if kind.base else "a function, or a dataclass"
        return f"has no {lacking[0]}: make it {form} with {lacking[0]}"
    return None if is_dataclass(component) else "is not a dataclass: write @dataclass(kw_only=True) above it"


def _origin(component: Any) -> tuple[str, str]:
    """Return where a component is defined; a partial or an object stands for itself."""
    return getattr(component, "__module__", ""), getattr(component, "__qualname__", repr(component))


def table(kind: str) -> Mapping[str, Any]:
    """Return the components of a kind by name."""
    return _COMPONENTS[kind]


def find(kind: str, name: str) -> Any:
    """Return the component of a name. Raises ValueError, with the nearest name, when there is none."""
    if name not in _COMPONENTS[kind]:
        raise ValueError(f"There is no {kind} named {name}{remedy(kind, name)}")
    return _COMPONENTS[kind][name]


def unknown(kind: str, name: str) -> str:
    """Return the sentence for a name that no component has."""
    return f"There is no {kind} named {name}{nearest(name, _COMPONENTS[kind])}"


def remedy(kind: str, name: str) -> str:
    """Return how a sentence on a name that no component has ends: what to use in its place."""
    if reason := _RETIRED[kind].get(name):
        return f". {reason}"
    return f"{nearest(name, _COMPONENTS[kind])} {OWN}"


def retire(kind: str, name: str, reason: str) -> None:
    """Let the message for a name that others use end with sentences: why it is not here, and what is."""
    _RETIRED[kind][name] = reason


def make(kind: str, name: str, values: Mapping[str, Any]) -> Any:
    """Return the settings of a component with these values, converted to its types and checked.

    A function, which has no settings, is returned as it is.
    Raises ValueError for an unknown name, an option that the component lacks, and one that is not given.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    component = find(kind, name)
    if not is_dataclass(component):
        check_options(kind, name, values, (), ())
        return component
    known = {field.name: field for field in fields(component)}
    given = {**values, **({"name": name} if "name" in known else {})}
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    check_options(kind, name, given, needed, [n for n in known if n != "name"])
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(component), literal(given)))
    except OmegaConfBaseException as error:
        fault = f"cannot have this {error.full_key}: {str(error).splitlines()[0].rstrip('.')}"
    raise ValueError(f"The {kind} {name} {fault}.")


def check_options(
    kind: str, name: str, given: Collection[str], needed: Iterable[str], known: Collection[str]
) -> None:
    """Raise ValueError unless all `given` options are `known`, and all `needed` are given."""
    listed = ", ".join(known) if known else "none"
    for option in given:
        if option not in known and option != "name":
            raise ValueError(f"The {kind} {name} has no option {option}; its options: {listed}.")
    for option in needed:
        if option not in given:
            raise ValueError(f"The {kind} {name} needs its option {option}; its options: {listed}.")


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that what they register is known."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


# --- Modules of the user's own, imported only when a command names them.

KEY = "plugins"
OWN = f"A component of your own needs {KEY}=[MODULE]."
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def named(arguments: Iterable[str]) -> list[str]:
    """Return the modules in the last `plugins=[a,b]` of a command line; `load` refuses mistyped ones."""
    found: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == KEY:
            listed = re.fullmatch(r"\s*\[(.*)\]\s*", value)
            names = listed[1] if listed else value
            empty = listed and not names.strip()
            found = [] if empty else [name.strip("'\" ") for name in names.split(",")]
    return found


def load(modules: Sequence[str]) -> None:
    """Import modules. Raises CheckpointError for what is no list, and for one that cannot be imported.

    An error of a module's own code is raised as it is; one that would end the program is a CheckpointError.
    """
    if not of_kind(modules, list[str]):
        raise CheckpointError(f"{KEY}={modules!r} is not a list of names of modules, such as ['my_module'].")
    for module in modules:
        if not _NAME.fullmatch(module):
            raise CheckpointError(f"{KEY}: {module!r} is not the name of a module, such as my_module.")
        _LOADED.add(module)
        try:
            importlib.import_module(module)
        except SystemExit:
            raise CheckpointError(
                f"{KEY}: {module} ends the program while it is imported: take its exit out."
            ) from None
        except (PeakpointError, SyntaxError) as error:
            raise CheckpointError(f"{KEY}: {module} cannot be imported: {error}") from None
        except (ImportError, AttributeError) as error:
            lacking = error.name if isinstance(error, ImportError) else getattr(error.obj, "__name__", None)
            ours = str(lacking).split(".")[0] in _OURS
            if isinstance(error, AttributeError) and not ours:
                raise  # a bug of the module's own
            remedy = REGISTER if ours else "It must be on the Python path."
            raise CheckpointError(f"{KEY}: {module} cannot be imported: {error}. {remedy}") from None


def raised_in(error: BaseException) -> str:
    """Return a sentence that names the plugin in whose code an error was raised, "" where it was in none."""
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        name = str(frame.f_globals.get("__name__"))
        if any(name == module or name.startswith(f"{module}.") for module in _LOADED):
            return f"It was raised in the plugin {name}: {frame.f_code.co_filename}, line {line}."
    return ""


_LOADED: set[str] = set()
"""Modules that commands of this process have named."""

REGISTER = "Components are added with @register(kind, name), from peakpoint import register."
_OURS = ("peakpoint", "trainer", "models", "optimizers", "checkpointing")
"""Packages of this version and of earlier ones, from which plugins of these imported other names."""


def recorded(config: Any) -> list[str]:
    """Return the plugins in the recorded configuration of a run: names to print, no more."""
    given = config.get(KEY) if isinstance(config, Mapping) else None
    names = given if isinstance(given, list | tuple) else []
    return [name for name in names if isinstance(name, str) and _NAME.fullmatch(name)]


def hint(config: Any) -> str:
    """Return what to add to a command so that the plugins of a recorded configuration are imported."""
    used = recorded(config)
    whose = f"The run used {KEY}=[{','.join(used)}]. " if used else ""
    asked = f"{KEY}=[{','.join(used) or 'module'}]"
    return (
        f"{whose}Code is imported only at your word: add {asked} to the command (in Python: "
        f"load_model(path, {KEY}={used or ['module']}))"
    )
