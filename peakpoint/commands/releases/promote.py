"""promote: a checkpoint becomes a release, once it is seen to be what its record says."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base import given, semver
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import check_folder
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage import aliases, companions, listing, locate
from peakpoint.checkpointing.storage.manifest import Manifest, encode
from peakpoint.commands.arguments import Parser, a_path, add_evaluation, add_path, add_rules
from peakpoint.commands.common import check_there, megabytes, not_vouched_for, print_json
from peakpoint.commands.releases import run_facts, settings
from peakpoint.commands.releases.select import shown
from peakpoint.deployment.release import card, changelog, publish, signing
from peakpoint.deployment.selection import rules

if TYPE_CHECKING:
    from peakpoint.commands.releases.promoting import Promotion


def promote_arguments(parser: Parser) -> None:
    """Add the arguments of `promote`."""
    add = parser.add_argument
    add_path(parser, "path", "RUN|FILE", "a run, for what select chooses, or a .pt file")
    add("--version", required=True, metavar="X.Y.Z", help="semantic, and never used before")
    add("--into", type=a_path, metavar="DIR", help="a folder of checkpoints, such as prod")
    add("--alias", metavar="NAME", help="name it as well: champion, challenger_1")
    add("--reason", metavar="TEXT", help="why, for the journal and the card")
    add("--card", type=a_path, metavar="FILE", help="texts as in conf/release/card.yaml")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of conf/release")
    add("--dry-run", action="store_true", help="measure and check, and write nothing")
    add_rules(parser)
    add_evaluation(parser)


def promote(options: argparse.Namespace) -> int:
    """Measure a checkpoint again, as it will be released, and release it."""
    chosen, key = _asked(options)
    into = _target(options.into) if options.into else None
    whole = options.path.is_dir()
    source_root = listing.checkpoint_root(options.path) if whole else options.path.absolute().parent.parent
    root = into or source_root
    semver.check_unused(options.version, publish.taken(root))
    released = not whole and options.path.absolute().parent.name == listing.PRODUCTION
    texts = {} if released else _texts(chosen, options.card, {})
    if not whole:
        source_root, manifest = locate.locate(options.path)
    if released:
        texts = _texts(chosen, options.card, run_facts.card_of(source_root, manifest))
    from peakpoint.commands.releases import promoting
    from peakpoint.deployment.release import release  # these bring torch

    if whole:
        manifest = promoting.selected(source_root, into, options)
    promotion = promoting.prepared((source_root, manifest), root, texts, chosen, options)
    written, signed = None, None
    if not options.dry_run:
        written = release.write(root, promotion.release)
        signed = _afterwards(root, written, key, options)
    _tell(promotion, written, signed, options)
    return 0


def _asked(options: argparse.Namespace) -> tuple[settings.Settings, Path | None]:
    """The settings and the key to sign with: what can be told to be wrong before anything is read."""
    semver.key(options.version)
    check_there(options.path, options.data_root)
    file = options.path
    if file.is_file() and not file.is_symlink() and not file.with_suffix(".json").exists():
        raise CheckpointError(not_vouched_for(file))
    chosen = settings.load(options.set, options.card)
    if options.path.is_dir():
        rules.load(options.rules)
    chosen.form()
    if options.alias:
        aliases.check(options.alias)
    key = given.path(chosen.sign) if chosen.sign else None
    if key:
        signing.check_key(key)
    return chosen, key


def _target(folder: Path) -> Path:
    """The checkpoint root that a release is to lie in; made by the write when it is new."""
    try:
        return listing.checkpoint_root(folder)
    except CheckpointError:
        check_folder(folder)
        return folder


def _texts(chosen: settings.Settings, file: Path | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What the makers say; of a release that is released again, what its card says where nothing else is."""
    said = {name: value for name, value in asdict(chosen.card).items() if card.lines_of(value)}
    said = {name: earlier[name] for name in asdict(chosen.card) if earlier.get(name)} | said
    where = file or settings.RELEASE / settings.CARD
    hint = "" if file else ", in a file of your own (--card FILE),"
    card.check(said, f"them in {where}{hint} or with --set card.NAME=TEXT")
    return said


def _afterwards(root: Path, written: Manifest, key: Path | None, options: argparse.Namespace) -> Path | None:
    """Sign it and give it a name; it is released whatever comes of that."""
    signed = None
    try:
        if key:
            mark = (root / written.file).with_suffix(".json")
            try:
                signed = signing.sign(mark, key)
            except (CheckpointError, OSError) as error:
                by_hand = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", signing.NAMESPACE, str(mark)]
                raise CheckpointError(
                    f"it is not signed: {error} To sign it: {shlex.join(by_hand)}"
                ) from None
        if options.alias:
            aliases.assign(
                root, options.alias, options.version, options.reason or f"released as {options.alias}"
            )
    except CheckpointError as error:
        raise CheckpointError(
            f"{options.version} is released as {root / written.file}, but {error}"
        ) from None
    finally:
        changelog.refresh(root)
    return signed


def _tell(
    promotion: "Promotion", written: Manifest | None, signed: Path | None, options: argparse.Namespace
) -> None:
    made, root = promotion.release, promotion.root
    files = {}
    if written is not None:
        paths = [
            written.file,
            *companions.listed(written),
            Path(written.file).with_suffix(".json").as_posix(),
        ]
        paths += [signed.relative_to(root).as_posix()] if signed else []
        files = {path: (root / path).stat().st_size for path in paths}
    if options.json:
        _print_json(promotion, files, options)
        return
    console = Console()
    epoch = f"epoch {made.epoch}, step {made.global_step}"
    console.say(f"{made.name} {made.version} from {shown(promotion.source)} ({epoch})")
    console.say("")
    rows = [
        [name, f"{promotion.recorded[name]:.4f}" if name in promotion.recorded else "-", f"{value:.4f}"]
        for name, value in promotion.measured.metrics.items()
    ]
    images = f"{promotion.measured.split}, {promotion.measured.samples} images"
    console.table([images, "recorded", "measured"], rows)
    console.say("")
    sparsity = f", sparsity {made.sparsity:.4f}" if made.sparsity is not None else ""
    console.say(f"{made.form.format}, {made.form.dtype}{', zeros packed' * made.form.compress}{sparsity}")
    if written is None:
        console.say(f"not written: --dry-run. It would be {shown(root / made.file)}")
        return
    for path, size in files.items():
        length = megabytes(size) if size >= 50_000 else f"{size:,} bytes"
        console.say(f"wrote  {shown(root / path)}  {length}")
    if options.alias:
        console.say(f"{options.alias} is {made.version} now")


def _print_json(promotion: "Promotion", files: Mapping[str, int], options: argparse.Namespace) -> None:
    made = promotion.release
    print_json(
        {
            "version": made.version,
            "name": made.name,
            "root": str(promotion.root),
            "file": made.file,
            "source": str(promotion.source),
            "split": promotion.measured.split,
            "samples": promotion.measured.samples,
            "recorded": {name: encode(value) for name, value in promotion.recorded.items()},
            "measured": {name: encode(value) for name, value in promotion.measured.metrics.items()},
            "sparsity": made.sparsity,
            "form": vars(made.form),
            "written": files,
            "alias": options.alias,
            "dry_run": options.dry_run,
        }
    )
