"""A model, optimizer or policy of your own: name its module in `plugins`, and register it there.

# my_optimizer.py, anywhere on the Python path
@dataclass(kw_only=True)
class Lion:                                     # names and types; weight_decay and clip_norm are required
    name: str = "lion"
    lr: float = 1e-4
    ...

add_optimizer("lion", Lion(), lambda cfg, groups: MyLion(groups, lr=cfg.lr))

python train.py 'plugins=[my_optimizer]' optimizer=lion optimizer.lr=3e-4
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore

from checkpointing import policies
from checkpointing.policy import Policy
from trainer.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

BuildModel = Callable[[Any, tuple[int, int, int], int], "nn.Module"]
BuildOptimizer = Callable[[Any, list[dict[str, Any]]], "Optimizer"]

MODELS: dict[type, BuildModel] = {}
OPTIMIZERS: dict[type, BuildOptimizer] = {}


def add_model(name: str, config: Any, build: BuildModel) -> None:
    """Offer `model=name`. `config` is a dataclass instance with the values; it needs a field `name`.

    `build` gets the config, the image shape (channels, height, width) and the number of classes.
    """
    MODELS[type(config)] = build
    ConfigStore.instance().store(group="model", name=name, node=config)


def add_optimizer(name: str, config: Any, build: BuildOptimizer) -> None:
    """Offer `optimizer=name`. `config` is a dataclass instance: name, lr, weight_decay, clip_norm and more.

    `build` gets the config and the parameter groups, whose weight decay is already set.
    """
    OPTIMIZERS[type(config)] = build
    ConfigStore.instance().store(group="optimizer", name=name, node=config)


def add_policy(name: str, settings: Any, policy: Callable[[Any], Policy]) -> None:
    """Offer `checkpoint/policy=[..., name]`. `settings` is a dataclass instance with the values."""
    policies.register(name, type(settings), policy)
    ConfigStore.instance().store(group="checkpoint/policy", name=name, node={name: settings})


def named(argv: list[str]) -> list[str]:
    """The modules in `plugins=[a,b]` of a command line; Hydra composes only after they are imported."""
    for argument in reversed(argv):
        key, _, value = argument.partition("=")
        if key == "plugins":
            return [name.strip("'\" ") for name in value.strip("[] ").split(",") if name.strip("'\" ")]
    return []


def load(modules: list[str]) -> None:
    """Import plugin modules. Raises UserError for one that cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"plugins: {module} cannot be imported: {error}. It must be on the Python path."
            ) from None
