"""Remote files looked at and changed behind the back of the commands."""

import json

from peakpoint.checkpointing.remote.client import Remote
from peakpoint.checkpointing.storage.manifest import sealed


def contents(root):
    """The files under a folder that are not links, by name."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def place(url, run="run"):
    return Remote(url, timeout_s=10).below(run)


def flip(far, key):
    """Damage the last byte of a remote file; returns what it was."""
    whole = far.read(key)
    far.write(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    return whole


def reseal(far, key, change, target=None):
    """Change a sealed remote file, or write it changed as `target`."""
    raw = json.loads(far.read(key))
    del raw["check"]
    change(raw)
    far.write(target or key, sealed(json.dumps(raw, indent=2)).encode())
