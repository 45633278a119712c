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

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint import models
from peakpoint.base.errors import UserError
from peakpoint.base.plugins import load as load
from peakpoint.base.plugins import named as named
from peakpoint.checkpointing import policies
from peakpoint.checkpointing.policy import Policy

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

BuildModel = Callable[[Any, tuple[int, int, int], int], "nn.Module"]
BuildOptimizer = Callable[[Any, list[dict[str, Any]]], "Optimizer"]

OPTIMIZERS: dict[type, BuildOptimizer] = {}


def add_model(name: str, config: Any, build: BuildModel) -> None:
    """Offer `model=name`, here and wherever a checkpoint of it is read (`models.register`).

    `config` is a dataclass instance with the values; it needs a field `name`, which is what a checkpoint
    records: choices of one `config.name` are of one class and one `build`. `build` gets the config, the image
    shape (channels, height, width) and the number of classes. Raises UserError when that name is taken.
    """
    kind = type(config)

    def create(*, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> "nn.Module":
        given = {"name": config.name, **options}
        try:
            typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), given))
        except OmegaConfBaseException as error:
            raise ValueError(str(error).splitlines()[0]) from None
        return build(typed, image_shape, num_classes)

    options = tuple(f.name for f in fields(kind) if f.name != "name")
    try:
        models.register(
            models.ModelRecord(config.name, f"of {build.__module__}", functools.wraps(build)(create), options)
        )
    except ValueError as error:
        raise UserError(str(error)) from None
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
