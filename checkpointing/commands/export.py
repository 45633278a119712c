"""export: a network as an ONNX or torch.export file, compared with its source. Imports torch when called."""

import argparse
from dataclasses import asdict

from checkpointing import exportable
from checkpointing.commands.common import check_there, megabytes, print_json
from checkpointing.terminal import Console


def export(options: argparse.Namespace) -> int:
    """Write the file, whole and compared or not at all; an existing one is never replaced."""
    wanted = {"opset": options.opset, "batch": options.batch}
    exportable.check(options.out, options.format, **wanted)
    check_there(options.path)
    from checkpointing import export as exports

    exports.check(options.out, options.format, **wanted)
    source = exports.source(options.path)
    made = exports.write(source, options.out, options.format, **wanted)
    agreement = made.agreement
    against = "the golden outputs of the release" if source.released else "the outputs of the network"
    if options.json:
        print_json(
            {
                **asdict(made),
                "file": str(made.file),
                "agreement": {**asdict(agreement), "sound": agreement.sound},
                "compared_with": "golden" if source.released else "network",
                **source.notes(),
                "config": source.description.config(),
            }
        )
        return 0
    console = Console()
    form = f"ONNX, opset {made.opset}" if made.opset else "torch.export"
    console.say(f"{made.file}: {form}, {megabytes(made.bytes)}, of {source.manifest.file}")
    shape = " x ".join(map(str, (made.batch or "any", *source.description.image_shape)))
    console.say(f"takes {shape} float32 as `images`, normalised")
    console.say(
        f"compared with {against}: largest error {agreement.largest:.3g}, {agreement.allowed:.3g} allowed; "
        f"the same class for {agreement.count - agreement.flipped} of {agreement.count} images",
    )
    return 0
