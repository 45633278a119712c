"""why and gc: what the policies of a run keep, and what they would let go."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import bounded
from peakpoint.base.bounded import read_json
from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing import policies
from peakpoint.checkpointing.policy import Policy, kept
from peakpoint.checkpointing.storage import quarantine, store
from peakpoint.checkpointing.storage.listing import PRODUCTION, own
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands.arguments import Parser, add_dry_run, add_path, add_run
from peakpoint.commands.checkpoints import history
from peakpoint.commands.common import (
    as_json,
    checkpoint_root,
    locked,
    manifest_of,
    megabytes,
    newest_sound,
    print_json,
    run_of,
    verdict,
)
from peakpoint.commands.releases import alias

NOTHING = "no policy keeps it"


def gc_arguments(parser: Parser) -> None:
    """Add the arguments of `gc`."""
    add_run(parser)
    add_dry_run(parser)


def why_arguments(parser: Parser) -> None:
    """Add the arguments of `why`."""
    add_path(parser, "path", "FILE", "a .pt file, there or gone")


@dataclass(frozen=True)
class Retention:
    """What a run's retention says now: for each checkpoint, oldest first, why it stays; empty: it goes."""

    reasons: Mapping[Manifest, list[str]]

    @property
    def doomed(self) -> list[Manifest]:
        """What the next save would delete."""
        return [manifest for manifest, why in self.reasons.items() if not why]


def retention(root: Path, run: str) -> Retention:
    """Ask the policies of a run, as its newest sound checkpoint configured them and left their counters.

    Loads that checkpoint, and imports torch for it. Raises CheckpointError when it does not tell.
    """
    from peakpoint.checkpointing.state import serialize

    newest = newest_sound(root, run)
    saved = serialize.load(root / newest.file)
    try:
        settings, counters = saved["config"]["checkpoint"]["policy"], saved["policies"]
        asked = {
            name: _policy(name, values) for name, values in settings.items() if name in policies.SETTINGS
        }
        for name, policy in asked.items():
            if name in counters:
                policy.load_state_dict(counters[name])
    except (KeyError, TypeError, ValueError, AttributeError, OmegaConfBaseException):
        raise CheckpointError(
            f"{root / newest.file} does not say which policies keep what: "
            "the trainer's checkpoints do, those of the library and of other versions do not."
        ) from None
    mine = [m for m in store.manifests(root) if m.run == run]
    needed = kept(mine, asked, _resumed_from(root))
    every = [policy.keeps(mine) for policy in asked.values()]
    strangers = settings.keys() - asked.keys()
    reasons = {}
    for manifest in mine:
        told = [needed[manifest]] if manifest in needed else []
        if strange := [p for p in manifest.policies if p in strangers]:
            told = [f"its policy {strange[0]} is a plugin's, which is not asked here: add plugins=[module]"]
        reasons[manifest] = list(dict.fromkeys([*told, *(k[manifest] for k in every if manifest in k)]))
    return Retention(reasons)


def _policy(name: str, values: object) -> Policy:
    typed = OmegaConf.merge(OmegaConf.structured(policies.SETTINGS[name]), bounded.literal(values))
    return policies.build(OmegaConf.to_object(typed))


def _resumed_from(root: Path) -> str | None:
    """The checkpoint that the latest attempt went on from, when one of this name is here."""
    try:
        source = Path(read_json(run_of(root) / "run.json")["attempts"][-1]["resumed_from"])
    except (CheckpointError, LookupError, TypeError):
        return None
    return f"{source.parent.name}/{source.name}"


def why(options: argparse.Namespace) -> int:
    """Which policy keeps a checkpoint, or when and why it went."""
    path: Path = options.path
    if path.parent.name == quarantine.QUARANTINE or not path.exists():
        told = history.of(path)
        if options.json:
            print_json(told)
        else:
            for each in told:
                Console().say(each["text"])
        return 0
    root, manifest = manifest_of(path)
    if manifest.tier == PRODUCTION:
        return alias.why(root, manifest, options.json)
    if wrong := verdict(root, manifest):
        raise CheckpointError(f"{wrong} The next start moves it to quarantine.")
    kept, unknown = None, ""
    try:
        now = retention(root, manifest.run).reasons
        kept = next((why for m, why in now.items() if m.file == manifest.file), [])
    except CheckpointError as error:
        unknown = str(error)
    if options.json:
        print_json({**as_json(root, manifest, True), "kept": kept})
        return 0
    console = Console()
    for tag, reason in zip(manifest.tags, manifest.reasons, strict=True):
        console.say(f"saved  {tag}: {reason}")
    for reason in kept or []:
        console.say(f"kept   {reason}")
    if not kept:
        console.say(
            f"kept   not known: {unknown}" if unknown else "kept   by nothing: the next save deletes it",
        )
    return 0


def gc(options: argparse.Namespace) -> int:
    """Delete what no policy keeps, or say what would go."""
    root = checkpoint_root(options.path)
    found = store.manifests(root)
    if not found:
        raise CheckpointError(f"{root} holds no checkpoint yet.")
    runs = dict.fromkeys(m.run for m in own(root, found))
    if options.dry_run:
        answers = [retention(root, run) for run in runs]
    else:
        with locked(root):
            answers = [_collect(root, run) for run in runs]
    rows = [(m, why) for answer in answers for m, why in answer.reasons.items()]
    if options.json:
        print_json([{**as_json(root, m, None), "kept": why} for m, why in rows])
        return 0
    console = Console()
    gone = "would go" if options.dry_run else "deleted"
    for manifest, why in rows:
        fate = "keep" if why else gone
        console.say(f"{fate}  {manifest.file}: {'; '.join(why) or NOTHING}")
    size, count = _freed(rows), sum(not why for _, why in rows)
    console.say(f"{count} of {len(rows)} {gone}, {megabytes(size)}")
    return 0


def _collect(root: Path, run: str) -> Retention:
    """Delete what goes, once the newest is seen to be sound."""
    answer = retention(root, run)
    if answer.doomed:
        store.verify(root, list(answer.reasons)[-1])
        target = Store(root, run)
        for manifest in answer.doomed:
            target.delete(manifest, NOTHING)
    return answer


def _freed(rows: list[tuple[Manifest, list[str]]]) -> int:
    """The bytes of what goes; those that a kept name shares stay."""
    stays = {m.digest for m, why in rows if why}
    return sum({m.digest: m.bytes for m, why in rows if not why and m.digest not in stays}.values())
