"""The command line: what a run has kept, why, and whether it is sound. Needs no torch to start.

python -m checkpointing COMMAND --help says what each command takes; docs/cli.md shows what it prints.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from checkpointing import plugins
from checkpointing.arguments import Parser, a_path
from checkpointing.errors import CheckpointError, os_reason
from checkpointing.terminal import say_error, steady_output
from checkpointing.urls import refuse_passwords

PLUGINS = "plugins=[module] imports modules of your own first, as for train.py: networks and data by name."

Command = Callable[[str, str, str], argparse.ArgumentParser]
"""Adds a command: its name, the module and the text of its help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 with one line on stderr, or 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = [a for a in given if a.startswith(f"{plugins.KEY}=")]
    with steady_output():
        try:
            refuse_passwords(given)
            options = _parser().parse([a for a in given if a not in own])
            # Late, so that a command pays only for what it imports.
            module = importlib.import_module(f"checkpointing.commands.{options.module}")
            if hasattr(options, "overrides"):  # a command line of train.py, which has plugins= itself
                options.overrides += own
            else:
                plugins.load(plugins.named(own))
            code: int = getattr(module, options.function)(options)
            return code
        except CheckpointError as error:
            say_error(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            say_error(f"{where}{os_reason(error)}.")
        except KeyboardInterrupt:
            return 130
        return 1


def _parser() -> Parser:
    parser = Parser(prog="python -m checkpointing", description="Look at checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, module: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=PLUGINS
        )
        added.set_defaults(module=module, function=name.replace("-", "_"), parser=added)
        added.add_argument("--json", action="store_true", help="JSON instead of tables")
        return added

    for group in (_upkeep, _networks, _runs, _choice, _releases, _copies):
        group(command)
    return parser


def _upkeep(command: Command) -> None:
    """What is kept, and whether it is in order."""
    ls = command("ls", "look", "a table of a run's checkpoints: what is kept, and why")
    _paths(ls, "path", "RUN", "a run directory, its checkpoints folder, or a tree of runs")
    ls.add_argument("--verify", action="store_true", help="check every digest")
    show = command("show", "look", "one checkpoint, its digest checked")
    _paths(show, "path", "FILE", "a .pt file, or a link such as latest.pt")
    verify = command("verify", "verify", "check digests; exit code 1 if anything is bad")
    verify.add_argument(
        "paths", nargs="+", type=a_path, metavar="PATH", help="a file, a run, or a tree of runs"
    )
    verify.add_argument("--golden", action="store_true", help="run the network of each release, too")
    verify.add_argument(
        "--allowed-signers", type=a_path, metavar="FILE", help="releases must be signed by one of these keys"
    )
    repair = command("repair", "repair", "rebuild pointers, quarantine what is bad, sweep strays")
    gc = command("gc", "retention", "delete what no policy keeps any more")
    for changing in (repair, gc):
        _paths(changing, "path", "RUN", "a run directory, or its checkpoints folder")
        changing.add_argument("--dry-run", action="store_true", help="only say what would be done")
    why = command("why", "retention", "what keeps a checkpoint, or when and why it went")
    _paths(why, "path", "FILE", "a .pt file, there or gone")
    diff = command("diff", "diff", "what two checkpoints do not have in common")
    for name in ("a", "b"):
        _paths(diff, name, name.upper(), "a .pt file, or a run: its newest")
    unpack = command("unpack", "unpack", "the ordinary file of a compressed checkpoint")
    _paths(unpack, "path", "FILE", "a .pt file")
    _paths(unpack, "out", "OUT", "the file to write; it must not exist")


def _networks(command: Command) -> None:
    """What a network is elsewhere, and beside others."""
    export = command("export", "export", "a network as ONNX or torch.export, compared with its source")
    _paths(export, "path", "PATH", "a release, any checkpoint, a link to one, or a run")
    _paths(export, "out", "OUT", "the file to write; it must not exist")
    export.add_argument("--format", choices=("onnx", "torch"), default="onnx")
    export.add_argument("--opset", type=int, metavar="N", help="of ONNX; the exporter's choice when left out")
    export.add_argument("--batch", type=_batch, default=None, metavar="dynamic|N", help="images at a time")
    compare = command("compare", "compare", "size, accuracy and latency of networks, against the first")
    compare.add_argument(
        "paths",
        nargs="+",
        type=a_path,
        metavar="PATH",
        help="a release, a checkpoint, a run, or an .onnx file",
    )
    compare.add_argument("--split", choices=("val", "test", "none"), default="val", help="for the accuracy")
    compare.add_argument("--data-root", type=a_path, metavar="DIR", help="where the data lie now")
    compare.add_argument("--batch", type=int, default=32, metavar="N", help="latency of N images, and of 1")
    compare.add_argument("--rounds", type=int, default=50, metavar="N", help="calls of each network")
    compare.add_argument("--threads", type=int, metavar="N", help="of the CPU; torch's choice when left out")
    compare.add_argument("--device", default="cpu", metavar="NAME", help="such as cuda")


def _runs(command: Command) -> None:
    """Before a run, and whether it can be resumed."""
    estimate = command("estimate", "estimate", "what a run will store, before it starts")
    estimate.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    estimate.add_argument("--table", action="store_true", help="well-known networks instead")
    prove = command("prove-resume", "prove", "kill and resume a run, and compare it with one that was not")
    prove.add_argument("overrides", nargs="+", metavar="RUN|KEY=VALUE", help="a run, or as for train.py")
    prove.add_argument("--steps", type=int, default=5, metavar="K", help="steps before the kill, and after")


def _choice(command: Command) -> None:
    """Which checkpoint is good enough, and still is."""
    select = command("select", "select", "which checkpoint the rules choose, and why not the others")
    select.add_argument("runs", nargs="+", type=a_path, metavar="RUN", help="a run, or a tree of runs")
    _rules(select)
    select.add_argument("--champion-of", type=a_path, metavar="RUN", help="whose champion to compare with")
    select.add_argument("--dry-run", action="store_true", help="do not evaluate the chosen one again")
    _evaluation(select)
    check = command("check", "check", "measure the champion again, and roll back if it got worse")
    _paths(check, "path", "RUN", "a run, or its checkpoints folder")
    check.add_argument("--alias", default="champion", metavar="NAME", help="which release")
    check.add_argument("--metric", default="accuracy", metavar="NAME", help="what to compare")
    check.add_argument(
        "--threshold", type=float, default=0.05, metavar="X", help="how much worse is still sound"
    )
    check.add_argument(
        "--other-data", type=a_path, metavar="PATH", help="newer images: .npz, or a folder as data.root"
    )
    check.add_argument("--roll-back", action="store_true", help="to the release before, if that is better")
    _evaluation(check)


def _copies(command: Command) -> None:
    """To a remote place and back."""
    push = command("push", "transfer", "copy a run's checkpoints to a remote place, what is missing there")
    _paths(push, "path", "RUN", "a run directory, or its checkpoints folder")
    push.add_argument("url", metavar="URL", help="as checkpoint.mirror: s3://bucket/folder")
    push.add_argument(
        "--what", metavar="A,B", help="tiers, roles, policies; what the run mirrors, and releases"
    )
    push.add_argument("--verify", action="store_true", help="read what is there, and repair it")
    push.add_argument("--timeout", type=float, default=20, metavar="S", help="for each answer of the server")
    pull = command("pull", "transfer", "copy a run, or a file of it, from a remote place; goes on if cut off")
    pull.add_argument("url", metavar="URL", help="of a run, of a place with one run, or of a .pt in a run")
    _paths(pull, "directory", "DIR", "a new directory, or that of an earlier pull of the run")
    pull.add_argument("--newest", action="store_true", help="only the newest checkpoint that is sound")


def _batch(text: str) -> int | None:
    """`dynamic` is None: any number."""
    if text == "dynamic":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither dynamic nor a number of images") from None


def _rules(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rules", default="default", metavar="FILE", help="YAML, or a name in conf/release/rules"
    )


def _evaluation(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-root", type=a_path, metavar="DIR", help="where the run's data lies now")
    command.add_argument("--device", default="auto", help="to evaluate on: auto, cpu, cuda")


def _releases(command: Command) -> None:
    """Releases: made, changing hands, told of."""
    _promote(command("promote", "promote", "make a checkpoint a release, measured again before"))
    alias = command("alias", "aliasing", "which release is the champion: list, show, set, or ask for a day")
    _paths(alias, "path", "RUN", "a run directory, or its checkpoints folder")
    alias.add_argument("name", nargs="?", metavar="NAME", help="champion, or challenger_1 and the like")
    alias.add_argument("version", nargs="?", metavar="VERSION", help="the release that it is to name")
    alias.add_argument("--remove", action="store_true", help="let it name no release any more")
    alias.add_argument("--on", metavar="DATE", help="what it named when that local day ended, or at a time")
    rollback = command("rollback", "aliasing", "verify an earlier release, then switch to it")
    _paths(rollback, "path", "RUN", "a run directory, or its checkpoints folder")
    rollback.add_argument("--to", metavar="VERSION", help="the release; default: the one before")
    rollback.add_argument("--alias", default="champion", metavar="NAME", help="default: champion")
    for changing in (alias, rollback):
        changing.add_argument("--reason", default="", metavar="TEXT", help="why, for the journal")
    changelog = command("changelog", "changelog", "what changed from release to release")
    _paths(changelog, "path", "RUN", "a run directory, or its checkpoints folder")


def _promote(promote: argparse.ArgumentParser) -> None:
    _paths(promote, "path", "RUN|FILE", "a run, for what select chooses, or a .pt file")
    promote.add_argument("--version", required=True, metavar="X.Y.Z", help="semantic, and never used before")
    promote.add_argument("--into", type=a_path, metavar="DIR", help="a folder of checkpoints, such as prod")
    promote.add_argument("--alias", metavar="NAME", help="name it as well: champion, challenger_1")
    promote.add_argument("--reason", metavar="TEXT", help="why, for the journal and the card")
    promote.add_argument("--card", type=a_path, metavar="FILE", help="texts as in conf/release/card.yaml")
    promote.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a value of conf/release"
    )
    promote.add_argument("--dry-run", action="store_true", help="measure and check, and write nothing")
    _rules(promote)
    _evaluation(promote)


def _paths(parser: argparse.ArgumentParser, name: str, metavar: str, text: str) -> None:
    parser.add_argument(name, type=a_path, metavar=metavar, help=text)


if __name__ == "__main__":
    sys.exit(main())
