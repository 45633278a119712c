"""export: a network as an ONNX or torch.export file, compared with its source. Imports torch when called."""

import argparse
from dataclasses import asdict

from peakpoint.base.terminal import Console
from peakpoint.commands.arguments import Parser, add_path
from peakpoint.commands.common import check_there, megabytes, print_json
from peakpoint.deployment.inference.form import check_export


def export_arguments(parser: Parser) -> None:
    """Add the arguments of `export`."""
    add_path(parser, "path", "PATH", "a release, any checkpoint, a link to one, or a run")
    add_path(parser, "out", "OUT", "the file to write; it must not exist")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX; the exporter's choice when left out")
    parser.add_argument("--batch", type=_batch, default=None, metavar="dynamic|N", help="images at a time")


def _batch(text: str) -> int | None:
    """Return the number of images at a time, None for `dynamic`."""
    if text == "dynamic":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither dynamic nor a number of images") from None


def export(options: argparse.Namespace) -> int:
    """Write the file, whole and compared or not at all; an existing file is never replaced."""
    wanted = {"opset": options.opset, "batch": options.batch}
    check_export(options.out, options.format, **wanted)
    check_there(options.path)
    from peakpoint.deployment.inference import export as exports

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
