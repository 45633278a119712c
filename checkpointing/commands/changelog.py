"""changelog: what changed from release to release."""

import argparse

from checkpointing import changelog as generated
from checkpointing.commands.aliasing import in_json
from checkpointing.commands.common import checkpoint_root, print_json
from checkpointing.manifest import readable
from checkpointing.terminal import Console


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
