"""export: a network as an ONNX or torch.export file, compared with its source. Imports torch when called."""

import argparse
from dataclasses import asdict

from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import check_new
from peakpoint.base.given import LARGEST_BATCH
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage import listing
from peakpoint.commands.arguments import Argument, number, path_argument, takes
from peakpoint.commands.common import check_there, checkpoint_root, print_json

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""Suffix of an exported file, by its format."""


def _batch(text: str) -> int | None:
    """Return the number of images at a time, None for `dynamic`."""
    if text == "dynamic":
        return None
    try:
        return int(number(int, 1, LARGEST_BATCH)(text))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or dynamic") from None


@takes(
    path_argument("path", "PATH", "a release, any checkpoint, a link to one, or a run"),
    path_argument("out", "OUT", "the file to write; it must not exist"),
    Argument("--format", choices=tuple(SUFFIXES), default="onnx"),
    Argument(
        "--opset", type=number(int, 1, 1000), metavar="N", help="of ONNX; the exporter's choice when left out"
    ),
    Argument("--batch", type=_batch, default=None, metavar="dynamic|N", help="images at a time"),
)
def export(options: argparse.Namespace) -> int:
    """Write the file, whole and compared or not at all; an existing file is never replaced."""
    out, suffix = options.out, SUFFIXES[options.format]
    check_new(out)
    listing.check_outside(out)
    if out.suffix != suffix:
        raise CheckpointError(f"{out} must end in {suffix}, as files of {options.format} do.")
    if options.format == "torch" and options.opset is not None:
        raise CheckpointError("torch.export has no opset: leave it out, or use --format onnx.")
    check_there(options.path)
    if options.path.is_dir():
        checkpoint_root(options.path)
    from peakpoint.deployment.inference import export as exports
    from peakpoint.deployment.inference import onnx_files

    if options.format == "onnx":
        onnx_files.check(options.opset)
    source = exports.source(options.path)
    opset, agreement = exports.write(source, out, options.format, opset=options.opset, batch=options.batch)
    size, batch = out.stat().st_size, options.batch
    against = "the golden outputs of the release" if source.released else "the outputs of the network"
    if options.json:
        print_json(
            {
                "file": str(out),
                "format": options.format,
                "bytes": size,
                "opset": opset,
                "batch": batch,
                "agreement": {**asdict(agreement), "sound": agreement.sound},
                "compared_with": "golden" if source.released else "network",
                **source.notes(),
                "config": source.description.config(),
            }
        )
        return 0
    console = Console()
    form = f"ONNX, opset {opset}" if opset else "torch.export"
    console.say(f"{out}: {form}, {in_words(size)}, of {source.manifest.file}")
    shape = " x ".join(map(str, (batch or "any", *source.description.image_shape)))
    console.say(f"takes {shape} float32 as `images`, normalised")
    console.say(
        f"compared with {against}: largest error {agreement.largest:.3g}, {agreement.allowed:.3g} allowed; "
        f"the same class for {agreement.count - agreement.flipped} of {agreement.count} images",
    )
    return 0
