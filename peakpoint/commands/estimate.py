"""estimate: the storage of a run before it starts, counted on the meta device. Imports torch when called."""

import argparse

from peakpoint.base.disk_space import in_words
from peakpoint.base.terminal import Console
from peakpoint.commands.arguments import Argument, takes
from peakpoint.commands.common import print_json
from peakpoint.trainer.config import check, choices, commandline
from peakpoint.trainer.sweep.storage import built, kept


@takes(Argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train"))
def estimate(options: argparse.Namespace) -> int:
    """Print the bytes that a run of this configuration will store."""
    choices.register_schemas()
    config = check.composed(commandline.overrides(options.overrides))
    sizes, batches = built(config)
    sparsity = config.pruning.target
    dense, packed = sizes.checkpoint(pruned=sparsity > 0), sizes.compressed(sparsity)
    numbers = kept(config, batches)
    count = sum(number for number in numbers.values() if number is not None)
    found = {
        "network": config.model.name,
        "optimizer": config.optimizer.name,
        "sparsity": sparsity,
        "parameters": sizes.parameters,
        "weights_bytes": sizes.weights,
        "optimizer_bytes": sizes.state,
        "checkpoint_bytes": dense,
        "compressed_bytes": packed,
        "kept": numbers,
        "peak_bytes": count * dense,
        "compressed_peak_bytes": count * packed,
    }
    if options.json:
        print_json(found)
        return 0
    console = Console()
    console.say(f"{config.model.name}, {config.optimizer.name}: {sizes.parameters:,} parameters")
    console.say(f"weights {in_words(sizes.weights)}, optimizer state {in_words(sizes.state)}")
    compressed = f"at sparsity {sparsity:g} compressed"
    rows: list[list[object]] = []
    for name, number in [("one checkpoint", 1), *numbers.items(), ("peak on disk", count)]:
        values: list[object] = (
            ["-"] * 3 if number is None else [number, in_words(number * dense), in_words(number * packed)]
        )
        rows.append([name, *values])
    console.table(["", "checkpoints at most", "dense", compressed], rows)
    console.say("At most: roles that share a checkpoint share its bytes.")
    return 0
