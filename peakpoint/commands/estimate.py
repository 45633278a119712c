"""estimate: the storage of a run before it starts. Imports torch when it is called."""

import argparse
from typing import Any

from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import Console
from peakpoint.commands.arguments import Parser
from peakpoint.commands.common import megabytes, print_json
from peakpoint.commands.sizes import Sizes, gpt2, measure

SOURCES = {
    "cifar10": ((3, 32, 32), 10, 50_000),
    "cifar100": ((3, 32, 32), 100, 50_000),
    "mnist": ((1, 28, 28), 10, 60_000),
    "fashion_mnist": ((1, 28, 28), 10, 60_000),
    "digits": ((1, 8, 8), 10, 1_438),
}
"""What is known without reading a dataset: (channels, height, width), classes, training images."""
NEWEST, IN_FLIGHT = "newest", "in flight"
TABLE_SPARSITY, TABLE_EPOCHS, TABLE_INTERVAL = 0.9, 100, 10


def estimate_arguments(parser: Parser) -> None:
    """Add the arguments of `estimate`."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train")
    parser.add_argument("--table", action="store_true", help="well-known networks instead")


def estimate(options: argparse.Namespace) -> int:
    """What the configuration at hand will store, or a table of well-known networks."""
    if options.table and options.overrides:
        raise CheckpointError(f"--table is of well-known networks: leave out {' '.join(options.overrides)}.")
    return _table(options.json) if options.table else _run(options.overrides, options.json)


def _run(overrides: list[str], as_json: bool) -> int:
    config = _compose(overrides)
    sizes, batches = _built(config)
    sparsity = config.pruning.target
    dense, packed = sizes.checkpoint(pruned=sparsity > 0), sizes.compressed(sparsity)
    kept = _kept(config, batches)
    count = sum(number for number in kept.values() if number is not None)
    found = {
        "network": config.model.name,
        "optimizer": config.optimizer.name,
        "sparsity": sparsity,
        "parameters": sizes.parameters,
        "weights_bytes": sizes.weights,
        "optimizer_bytes": sizes.state,
        "checkpoint_bytes": dense,
        "compressed_bytes": packed,
        "kept": kept,
        "peak_bytes": count * dense,
        "compressed_peak_bytes": count * packed,
    }
    if as_json:
        print_json(found)
        return 0
    console = Console()
    console.say(f"{config.model.name}, {config.optimizer.name}: {sizes.parameters:,} parameters")
    console.say(f"weights {megabytes(sizes.weights)}, optimizer state {megabytes(sizes.state)}")
    compressed = f"at sparsity {sparsity:g} compressed"
    rows: list[list[object]] = []
    for name, number in [("one checkpoint", 1), *kept.items(), ("peak on disk", count)]:
        values = ["-"] * 3 if number is None else [str(number), _mb(number * dense), _mb(number * packed)]
        rows.append([name, *values])
    console.table(["", "checkpoints at most", "MB", f"MB, {compressed}"], rows)
    console.say("At most: roles that share a checkpoint share its bytes.")
    return 0


def _compose(overrides: list[str]) -> Any:
    """The checked configuration that train.py would have. Raises CheckpointError."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from peakpoint.base.errors import UserError
    from peakpoint.base.files import CONF
    from peakpoint.trainer.config import check, commandline, hydra_overrides, plugins
    from peakpoint.trainer.config.explain import explain

    try:
        check.register_schemas()
        own = [o for o in commandline.overrides(overrides) if not o.startswith(("hydra.", "resume="))]
        plugins.load(plugins.named(own))
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return check.checked(hydra.compose("config", own), hydra_overrides.keys(own))
    except (HydraException, OmegaConfBaseException, UserError) as error:
        raise CheckpointError(explain(error)) from None


def _built(config: Any) -> tuple[Sizes, int]:
    """The sizes of a configuration, and the batches in an epoch."""
    import torch

    from peakpoint.trainer.build import build_model, build_optimizer

    shape, classes, images = _source(config.data)
    try:
        with torch.device("meta"):
            model = build_model(config.model, shape, classes)
            sizes = measure(model, build_optimizer(config.optimizer, model))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return sizes, round(images * (1 - config.data.val_fraction)) // config.batch_size


def _source(data: Any) -> tuple[tuple[int, int, int], int, int]:
    if data.name == "synthetic":
        shape, classes, images = (data.channels, *(2 * [data.native_size])), data.num_classes, data.train_size
    elif data.name in SOURCES:
        shape, classes, images = SOURCES[data.name]
    else:
        from peakpoint.base.errors import UserError
        from peakpoint.trainer.data.sources import load_train

        try:
            read = load_train(data)
        except UserError as error:
            raise CheckpointError(str(error)) from None
        height, width, channels = read.images.shape[1:]
        shape, classes, images = (channels, height, width), len(read.classes), len(read.labels)
    if data.image_size is not None:
        shape = (shape[0], data.image_size, data.image_size)
    return shape, classes, images


def _kept(config: Any, batches: int) -> dict[str, int | None]:
    """How many checkpoints each policy keeps at once, at most; None for a policy that is not known."""
    steps = config.epochs * batches if config.max_steps is None else config.max_steps
    epochs = min(config.epochs, -(-steps // batches)) if batches else config.epochs
    kept: dict[str, int | None] = {}
    for name, policy in config.checkpoint.policy.items():
        match name:
            case "interval":
                saves = (epochs // policy.epochs if policy.epochs else 0) + (
                    steps // policy.steps if policy.steps else 0
                )
                kept[name] = min(policy.keep_last, saves)
            case "wall_clock":
                kept[name] = policy.keep_last if policy.minutes else 0
            case "best":
                kept[name] = len(policy.metrics) * min(epochs, policy.keep or epochs)
            case "top_k":
                kept[name] = min(epochs, policy.k)
            case "sparsity":
                met = {round(t, 6) for t in policy.targets if 0 < t <= config.pruning.target + 1e-6}
                kept[name] = len(met) * min(epochs, policy.keep or epochs)
            case "early_stopping":
                kept[name] = 0
            case _:
                kept[name] = None
    return {**kept, NEWEST: 1, IN_FLIGHT: 1}


def _table(as_json: bool) -> int:
    saves = TABLE_EPOCHS // TABLE_INTERVAL
    found: list[dict[str, Any]] = []
    for name, sizes in _well_known().items():
        dense, packed = sizes.checkpoint(pruned=False), sizes.compressed(TABLE_SPARSITY)
        found.append(
            {
                "network": name,
                "parameters": sizes.parameters,
                "weights_bytes": sizes.weights,
                "checkpoint_bytes": dense,
                "compressed_bytes": packed,
                "every_10_of_100_epochs_bytes": saves * dense,
                "every_10_of_100_epochs_compressed_bytes": saves * packed,
            }
        )
    if as_json:
        print_json(found)
        return 0
    rows: list[list[object]] = []
    for row in found:
        network, parameters, *bytes_of = row.values()
        rows.append([network, f"{parameters / 1e6:,.2f} M", *map(_mb, bytes_of)])
    console = Console()
    console.table(["", "parameters", "weights", "AdamW", "packed", "of 10", "packed"], rows)
    every = f"{saves} of them, every {TABLE_INTERVAL} of {TABLE_EPOCHS} epochs"
    console.say(f"MB, float32. Packed: checkpoint.compress at sparsity {TABLE_SPARSITY:g}. Of 10: {every}.")
    return 0


def _well_known() -> dict[str, Sizes]:
    """The networks of the table. GPT-2's layers and widths: Radford et al. 2019, table 2."""
    import torch

    from peakpoint import models
    from peakpoint.optimizers.adamw import build_adamw
    from peakpoint.optimizers.groups import param_groups

    def built(name: str, shape: tuple[int, int, int], classes: int) -> Sizes:
        options = {"dropout": 0.0} if name == "lenet5" else {"dropout": 0.0, "stem": "auto"}
        with torch.device("meta"):
            model = models.create(name, image_shape=shape, num_classes=classes, options=options)
            groups = param_groups(model, 0.0)
            return measure(model, build_adamw(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, amsgrad=False))

    return {
        "LeNet-5 (MNIST)": built("lenet5", (1, 28, 28), 10),
        "ResNet-18 (ImageNet)": built("resnet18", (3, 224, 224), 1000),
        "ResNet-50 (CIFAR-100)": built("resnet50", (3, 32, 32), 100),
        "ResNet-50 (ImageNet)": built("resnet50", (3, 224, 224), 1000),
        "GPT-2 small": gpt2(12, 768),
        "GPT-2 medium": gpt2(24, 1024),
        "GPT-2 large": gpt2(36, 1280),
        "GPT-2 XL": gpt2(48, 1600),
    }


def _mb(size: float) -> str:
    return f"{size / 1e6:,.2f}" if size < 1e7 else f"{size / 1e6:,.0f}"
