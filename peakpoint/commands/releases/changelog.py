"""changelog: what changed from release to release."""

import argparse

from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage.manifest import readable
from peakpoint.commands.arguments import Parser, add_run
from peakpoint.commands.common import checkpoint_root, print_json
from peakpoint.commands.releases.alias import in_json
from peakpoint.deployment.release import changelog as generated


def changelog_arguments(parser: Parser) -> None:
    """Add the arguments of `changelog`."""
    add_run(parser)


def changelog(options: argparse.Namespace) -> int:
    """Print the changelog of a folder's releases, and write it to metadata/CHANGELOG.md."""
    root = checkpoint_root(options.path)
    if options.json:
        found = generated.entries(root)
        print_json([readable({**vars(e), "aliases": [in_json(c) for c in e.aliases]}) for e in found])
    else:
        console = Console()
        for text in generated.text(root).splitlines():
            console.say(text)
    generated.write(root)
    return 0
