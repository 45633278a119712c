"""The command line: the commands by name, and what all of them share.

It starts without torch. Each command is a function of a module below commands/ that declares
its arguments; docs/cli.md shows what each prints.
"""

import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType

from peakpoint.base import registry
from peakpoint.base.errors import PeakpointError, os_reason
from peakpoint.base.terminal import say_error, steady_output
from peakpoint.base.text import nearest
from peakpoint.checkpointing.remote.urls import refuse_passwords
from peakpoint.commands.arguments import ARGUMENTS, Command, Parser

PLUGINS = "plugins=[module] imports modules of your own first, as for train: networks and data by name."

COMMANDS = {
    "train": ("train", "train and prune a network, or resume a run: KEY=VALUE as in conf/"),
    "report": (
        "report",
        "the peak of a run against its end, its tests and a page of charts; of several, a table",
    ),
    "record": ("record", "what was run, when, on what, with which code and data, and how it ended"),
    "cite": ("cite", "a paragraph and a BibTeX entry of finished runs, with n, spread and budget"),
    "ls": ("checkpoints.ls", "a table of a run's checkpoints: what is kept, and why"),
    "show": ("checkpoints.ls", "one checkpoint, its digest checked"),
    "verify": ("checkpoints.verify", "check digests; exit code 1 if anything is bad"),
    "repair": ("checkpoints.repair", "rebuild pointers, quarantine what is bad, sweep strays"),
    "gc": ("checkpoints.retention", "delete what no policy keeps any more"),
    "why": ("checkpoints.retention", "what keeps a checkpoint, or when and why it went"),
    "diff": ("checkpoints.ls", "what two checkpoints, or the records of two runs, do not have in common"),
    "unpack": ("checkpoints.transfer", "the ordinary file of a compressed checkpoint"),
    "export": ("networks.export", "a network as ONNX or torch.export, compared with its source"),
    "compare": ("networks.compare", "size, accuracy and latency of networks, against the first"),
    "ensemble": ("networks.ensemble", "the average of a run's best networks, and of their weights, measured"),
    "estimate": ("estimate", "what a run will store, before it starts"),
    "prove-resume": ("proof.prove", "kill and resume a run, and compare it with one that was not"),
    "select": ("releases.select", "which checkpoint the rules choose, and why not the others"),
    "promote": ("releases.promote", "make a checkpoint a release, measured again before"),
    "check": ("releases.check", "measure the champion again, and roll back if it got worse"),
    "alias": ("releases.alias", "which release is the champion: list, show, set, or ask for a day"),
    "rollback": ("releases.alias", "verify an earlier release, then switch to it"),
    "changelog": ("releases.alias", "what changed from release to release"),
    "push": ("checkpoints.transfer", "copy a run's checkpoints to a remote place, what is missing there"),
    "pull": (
        "checkpoints.transfer",
        "copy a run or a file of it from a remote place; continues if cut off",
    ),
}
"""Name of a command -> the module below commands/, and one line of help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 or 2 with one line on stderr, or 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:  # Hydra reads sys.argv, and has a help of its own
        sys.argv[1:] = given[1:]
        importlib.import_module("peakpoint.commands.train").main()
    with steady_output(), _unwound():
        try:
            refuse_passwords(given)
            return _run(given)
        except PeakpointError as error:
            say_error(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            say_error(f"{where}{os_reason(error)}.")
        except KeyboardInterrupt:
            return 130
        except Exception as error:  # a bug: of Peakpoint, or of a plugin
            if plugin := registry.raised_in(error):
                error.add_note(plugin)  # the last line of the traceback
            raise
        return 1


@contextmanager
def _unwound() -> Iterator[None]:
    """Let SIGTERM and SIGHUP exit with 128 + their number, so that what it began is cleared away."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    ended = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in ended:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ended:
            signal.signal(number, signal.SIG_DFL)


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name, *rest = given
    if name == "--version":
        print(f"peakpoint {version('peakpoint')}")
        return 0
    if name not in COMMANDS:
        say_error(f"{name} is not a command{nearest(name, COMMANDS)}")
        sys.exit(2)
    parser, function = _command(name)
    own = [a for a in rest if a.startswith(f"{registry.KEY}=")]
    options = parser.parse([a for a in rest if a not in own])
    if hasattr(options, "overrides"):  # a command line of train, which has plugins= itself
        options.overrides += own
    else:
        registry.load(registry.named(own))
    return function(options)


def _command(name: str) -> tuple[Parser, Command]:
    """Return the parser of a command and its function; only its own module is imported."""
    where, text = COMMANDS[name]
    module = importlib.import_module(f"peakpoint.commands.{where}")
    command: Command = getattr(module, name.replace("-", "_"))
    parser = Parser(prog=f"peakpoint {name}", description=f"{text[0].upper()}{text[1:]}.", epilog=PLUGINS)
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    for argument in ARGUMENTS[command]:
        parser.add_argument(*argument.names, **argument.options)
    return parser, command


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return "\n".join(
        ["usage: peakpoint COMMAND ...", "", *lines, "", "peakpoint COMMAND --help shows its arguments."]
    )
