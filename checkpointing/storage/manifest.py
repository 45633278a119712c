"""The JSON beside each checkpoint: what it is, why it is kept, and the digest that makes it valid.

The manifest is the commit mark: it is written after the bytes are durable, and a file without one is not a
checkpoint. Every index is derived from manifests, never the reverse.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any

from peakpoint.base import digests
from peakpoint.base.bounded import json_value, read_bytes
from peakpoint.base.errors import CheckpointError, FormatError
from peakpoint.base.text import json_text

VERSION = "1.0.0"
"""Version of the layout of a checkpoint's file."""
TRAINING, MILESTONE, PRODUCTION = TIERS = ("training", "milestone", "production")
AVERAGE = "average"
"""Role of the average of several networks' weights: no state of a training, and kept until it is removed."""
FORMAT = 2
"""Format of new manifests; format 1 had the digest under `sha256`."""
LARGEST = 16 << 20
"""Largest manifest in bytes."""
SAFETENSORS = ".safetensors"
SUFFIXES = (".pt", SAFETENSORS)
"""Suffixes of the files that manifests describe."""
TYPES: dict[str, type | UnionType] = {
    "run": str,
    "digest": str,
    "sequence": int,
    "bytes": int,
    "epoch": int,
    "global_step": int,
    "sparsity": float | int | None,
    "created": str,
    "git_commit": str | None,
    "config": dict | None,
    "metadata": dict | None,
    "companions": dict | None,
}
"""Types of the entries that code relies on."""
RELEASE: dict[str, type] = {"trained_with": dict, "source": dict, "reason": str}
"""Types of entries in the metadata of a release."""

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,200}")
"""A tag, which is the name of a pointer and not a path."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Manifest:
    """One checkpoint; compared by identity.

    `file` is relative to the checkpoint root; `tags`, `policies` and `reasons` are parallel: the role, the
    policy (by its name in the configuration) that asked for it, and its reason in words. `sequence` orders
    the saves of a run, since clocks go backwards; `created` is UTC, ISO 8601; `digest` names its algorithm.
    `companions` are the digests of the checkpoint's other files by path from the root. `config` and
    `metadata` are for people, and absent from the file when they are None.
    """

    file: str
    tier: str
    tags: tuple[str, ...]
    policies: tuple[str, ...]
    reasons: tuple[str, ...]
    sequence: int
    run: str
    epoch: int
    global_step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    sparsity: float | None = None
    bytes: int = 0
    digest: str = ""
    created: str = ""
    git_commit: str | None = None
    format: int = FORMAT
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    companions: Mapping[str, str] | None = None

    def to_json(self) -> str:
        """Return readable JSON. Raises CheckpointError, with the key, for what read_manifest would refuse."""
        optional = ("config", "metadata", "companions")
        plain = {key: value for key, value in vars(self).items() if value is not None or key not in optional}
        return sealed(json_text(plain, LARGEST, indent=2))


def file_contents(of: Manifest, **state: Any) -> dict[str, Any]:
    """Return the contents of a checkpoint's file: facts of its manifest, then its state."""
    return {
        "version": VERSION,
        "checkpoint_type": of.tier,
        "git_commit": of.git_commit,
        "epoch": of.epoch,
        "global_step": of.global_step,
        "metrics": dict(of.metrics),
        "config": of.config,
        **state,
    }


_NAMES = frozenset(f.name for f in fields(Manifest))


def sealed(text: str) -> str:
    """Return a JSON object with the digest of its own text as the last key, `check`."""
    body = text.rstrip().removesuffix("}").rstrip()
    return f'{body},\n  "check": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def unsealed(data: bytes) -> dict[str, Any]:
    """Return the object in a text of `sealed`. Raises ValueError when the text was changed."""
    text = data.decode()
    raw: dict[str, Any] = json_value(text)
    if text != sealed(text.rpartition(',\n  "check": ')[0] + "}"):
        raise ValueError("it was changed after it was written")
    return raw


def companions_of(manifest: Manifest) -> dict[str, str]:
    """Return the digests of the other files of a checkpoint by path from the checkpoint root.

    Raises CheckpointError for a path that leaves the root.
    """
    found = dict(manifest.companions or {})
    for name in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{manifest.file} names {name!r} among its files: it leaves its folder.")
    return found


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file. Raises CheckpointError, naming the file, when it is not one.

    FormatError, a subclass, means that the file is intact and another version wrote it.
    """
    data = read_bytes(path, LARGEST)
    # The place of the manifest names the file that it describes; a name in it could leave the root.
    return parse_manifest(data, str(path), f"{path.parent.name}/{path.stem}.pt")


def parse_manifest(data: bytes, where: str, file: str) -> Manifest:
    """Parse a manifest at `where` that describes `file`, a `tier/name`. Raises as read_manifest."""
    try:
        raw = unsealed(data)
        if raw["format"] not in range(1, FORMAT + 1):
            raise FormatError(
                f"{where} is of format {raw['format']}, and this version reads up to {FORMAT}: "
                "use the version of Peakpoint that wrote it."
            )
        raw["tier"] = file.split("/")[0]
        raw["file"] = str(PurePosixPath(file).with_suffix(_suffix(raw)))
        return _from_plain(raw)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{where} is not a readable checkpoint manifest: {error}.") from None


def _suffix(raw: Mapping[str, Any]) -> str:
    """Return the suffix of the described file; only a release may have another than .pt."""
    safe = raw["tier"] == PRODUCTION and PurePosixPath(raw["file"]).suffix == SAFETENSORS
    return SAFETENSORS if safe else ".pt"


def _from_plain(raw: dict[str, Any]) -> Manifest:
    """Return the manifest in a JSON object; the one place that checks the types of its values."""
    known = {k: v for k, v in raw.items() if k in _NAMES}
    for name in ("tags", "policies", "reasons"):
        if not isinstance(raw[name], list) or not all(isinstance(each, str) for each in raw[name]):
            raise TypeError(f"{name} is {_short(raw[name])}")
        known[name] = tuple(raw[name])
    if not len(known["tags"]) == len(known["policies"]) == len(known["reasons"]):
        raise ValueError("tags, policies and reasons are not parallel")
    if wrong := [tag for tag in known["tags"] if not _TAG.fullmatch(tag)]:
        raise ValueError(f"{_short(wrong[0])} is not a tag")
    known["metrics"] = {k: float(v) for k, v in raw["metrics"].items()}
    if raw["format"] == 1:
        known["digest"] = raw.get("sha256")
        if known["tier"] == PRODUCTION:
            known["metadata"] = dict(known.get("metadata") or {})
            known["companions"] = known["metadata"].pop("digests", None)
    for name, kind in TYPES.items():
        if not isinstance(known.get(name), kind) or isinstance(known.get(name), bool):
            raise TypeError(f"{name} is {_short(known.get(name))}")
    for name in ("sequence", "bytes"):
        if known[name] < 0:
            raise ValueError(f"{name} is {known[name]}")
    if known["digest"]:  # else it was never written
        known["digest"] = digests.parsed(known["digest"])
    known["companions"] = {k: digests.parsed(v) for k, v in (known.get("companions") or {}).items()} or None
    if known["tier"] == PRODUCTION:
        _check_release(known.get("metadata") or {})
    return Manifest(**known)


def _check_release(metadata: Mapping[str, Any]) -> None:
    for name, kind in RELEASE.items():
        value = metadata.get(name)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is {_short(value)}")


def _short(value: Any) -> str:
    return repr(value)[:80]
