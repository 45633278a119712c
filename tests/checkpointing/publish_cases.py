"""Small releases: a network that its own description rebuilds, and what must hold of them at any time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from peakpoint.checkpointing.storage import journal, listing
from peakpoint.deployment.inference import network
from peakpoint.deployment.release import release
from peakpoint.deployment.release.release import Form, Release

PLAIN = Form(format="pt", dtype="float32", compress=False)
SAFE = Form(format="safetensors", dtype="float32", compress=False)
DESCRIPTION = network.Description(
    name="lenet5",
    options={"dropout": 0.0},
    image_shape=(3, 12, 12),
    classes=("a", "b", "c", "d"),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)


def small(
    version: str,
    *,
    seed: int = 0,
    form: Form = PLAIN,
    description: network.Description | None = DESCRIPTION,
    **more: Any,
) -> Release:
    """The release of a network whose weights a seed decides; without description nobody rebuilds it."""
    described = description or DESCRIPTION
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network.build(described)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    made = Release(
        version=version,
        name=described.name,
        weights=model.state_dict(),
        config=described.config(),
        form=form,
        reason=f"a test of {version}",
        run="run",
        description=description,
        card={"version": version},
        card_text=f"# {version}\n",
    )
    return replace(made, **more)


def files(root: Path, version: str) -> list[Path]:
    """Every file of a release, its manifest last."""
    stem = listing.by_version(root)[version].file.rsplit(".", 1)[0]
    found = [p for p in (root / stem).parent.iterdir() if p.name.startswith(f"{Path(stem).name}.")]
    found += [p for p in (root / "metadata").rglob(f"v{version}.*") if p.suffix in (".json", ".md")]
    found += [root / "metadata" / "golden" / f"v{version}.safetensors"]
    mark = root / f"{stem}.json"
    return [*sorted(set(found) - {mark}), mark]


def contents(root: Path) -> dict[str, bytes]:
    """The bytes of everything that was released, by path; pointers and the journal aside."""
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for folder in ("production", "metadata/golden", "metadata/model_cards")
        for p in (root / folder).glob("*")
        if p.is_file() and not p.is_symlink() and not p.name.startswith(".")
    }


def journaled(root: Path) -> list[str]:
    """The versions in the journal's lines, in order."""
    return [fact["version"] for fact in journal.recorded(root) if fact["event"] == "released"]


def sound(root: Path, *, run: bool = False) -> list[str]:
    """The versions that are released; each is whole, to the last file beside its weights."""
    found = listing.by_version(root)
    for manifest in found.values():
        release.verify(root, manifest, run=run)
    return list(found)
