"""promote: a checkpoint becomes a release, once it measures as recorded. Imports torch when called."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base import given, semver
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import check_folder
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage import aliases, companions, listing, locate
from peakpoint.checkpointing.storage.manifest import PRODUCTION, Manifest
from peakpoint.commands.arguments import Parser, a_path, add_evaluation, add_path, add_rules
from peakpoint.commands.common import check_there, megabytes, not_vouched_for, print_json
from peakpoint.commands.releases import run_facts, settings
from peakpoint.commands.releases.select import shown
from peakpoint.deployment.release import card, card_page, changelog, publish, signing
from peakpoint.deployment.release.card import Result
from peakpoint.deployment.selection import rules

if TYPE_CHECKING:
    from torch import nn

    from peakpoint.commands.releases.run_facts import RunRecord
    from peakpoint.deployment.inference.evaluate import Measured
    from peakpoint.deployment.inference.form import Form
    from peakpoint.deployment.release.release import Release


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A release, its source checkpoint and root, and its metrics as recorded and as measured again."""

    root: Path
    source: Path
    release: "Release"
    recorded: Mapping[str, float]
    measured: "Measured"


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
    """Measure a checkpoint again in the form of the release, and release it."""
    chosen, key = _checked(options)
    into = _target(options.into) if options.into else None
    whole = options.path.is_dir()
    source_root = listing.checkpoint_root(options.path) if whole else options.path.absolute().parent.parent
    root = into or source_root
    semver.check_unused(options.version, publish.taken(root))
    released = not whole and options.path.absolute().parent.name == PRODUCTION
    texts = {} if released else _texts(chosen, options.card, {})
    if whole:
        manifest = _selected(source_root, into, options)
    else:
        source_root, manifest = locate.locate(options.path)
    if released:
        texts = _texts(chosen, options.card, run_facts.card_of(source_root, manifest))
    promotion = _prepared((source_root, manifest), root, texts, chosen, options)
    written, signed = None, None
    if not options.dry_run:
        from peakpoint.deployment.release import release

        written = release.write(root, promotion.release)
        signed = _finish(root, written, key, options)
    _print(promotion, written, signed, options)
    return 0


def _checked(options: argparse.Namespace) -> tuple[settings.Settings, Path | None]:
    """Return the settings and the key to sign with. Raises CheckpointError before anything large is read."""
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
    """Return the checkpoint root of --into, which need not exist yet."""
    try:
        return listing.checkpoint_root(folder)
    except CheckpointError:
        check_folder(folder)
        return folder


def _texts(chosen: settings.Settings, file: Path | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts of the card; those that are not given are taken from the `earlier` card."""
    texts = {name: value for name, value in asdict(chosen.card).items() if card.lines_of(value)}
    texts = {name: earlier[name] for name in asdict(chosen.card) if earlier.get(name)} | texts
    where = file or settings.RELEASE / settings.CARD
    hint = "" if file else ", in a file of your own (--card FILE),"
    card.check(texts, f"them in {where}{hint} or with --set card.NAME=TEXT")
    return texts


def _selected(root: Path, into: Path | None, options: argparse.Namespace) -> Manifest:
    """Return the choice of `select`, verified; it is compared with the champion of the target root."""
    from peakpoint.deployment.selection import select

    champion_of = into if into and listing.is_root(into) else None
    found = select.choose(
        [root],
        rules.load(options.rules),
        champion_of=champion_of,
        data_root=options.data_root,
        device=options.device,
    )
    if found.winner is None:
        again = ["select", str(options.path)]
        again += ["--rules", options.rules] if options.rules != rules.DEFAULT else []
        again += ["--champion-of", str(champion_of)] if champion_of else []
        raise CheckpointError(f"{found.nothing()} To see why: peakpoint {shlex.join(again)}")
    return found.winner[1]


def _prepared(
    source: tuple[Path, Manifest],
    root: Path,
    texts: Mapping[str, Any],
    chosen: settings.Settings,
    options: argparse.Namespace,
) -> Promotion:
    """Return the release with its card, checked and measured but not written."""
    from peakpoint.checkpointing.state import objects
    from peakpoint.deployment.inference import evaluate, network
    from peakpoint.deployment.release import release

    source_root, manifest = source
    form = chosen.form()
    kept_for = "; ".join(manifest.reasons)
    chosen_by = f"chosen by the rules {Path(options.rules).stem}, kept for: " if options.path.is_dir() else ""
    reason = options.reason or chosen_by + kept_for
    made = release.of(source_root, manifest, version=options.version, form=form, reason=reason)
    release.check(root, made)
    if made.description is None or made.trained_with is None:
        raise CheckpointError(
            f"{manifest.file} does not say what it was trained with: it cannot be measured."
        )
    trained_with = made.trained_with
    record = run_facts.read(source_root, manifest, trained_with["config"])
    rebuilt = network.build(made.description, made.weights, trained_with["config"])
    objects.check_finite(rebuilt)
    measured = evaluate.measure(
        rebuilt, trained_with, split=chosen.split, data_root=options.data_root, device=options.device
    )
    recorded = (manifest.metrics if chosen.split == "val" else record.tests()) or {}
    _compare(recorded, measured, chosen.tolerance, form)
    made = _with_card(made, rebuilt, texts, record, measured)
    return Promotion(
        root=root,
        source=source_root / manifest.file,
        release=replace(made, golden_inputs=chosen.golden),
        recorded=recorded,
        measured=measured,
    )


def _with_card(
    made: "Release", rebuilt: "nn.Module", texts: Mapping[str, Any], record: "RunRecord", measured: "Measured"
) -> "Release":
    """Return the release with its measured metrics and its card."""
    from peakpoint.deployment.inference import evaluate

    counts = {
        "parameters": sum(p.numel() for p in rebuilt.parameters()),
        "nonzero": sum(int(p.count_nonzero()) for p in rebuilt.parameters()),
        "sparsity": evaluate.sparsity(rebuilt),
    }
    made = replace(
        made,
        metrics={**made.metrics, **measured.metrics} if measured.split == "val" else made.metrics,
        sparsity=counts["sparsity"],
    )
    of = f"the released weights, {made.form.dtype}, evaluated at the release"
    filled = card.build(
        texts,
        version=made.version,
        model=made.config,
        weights={**vars(made.form), **counts},
        results=record.results(Result(measured.split, measured.samples, measured.metrics, of)),
        record=record.facts((made.trained_with or {}).get("fingerprint") or {}, made.reason),
    )
    return replace(made, card=filled, card_text=card_page.markdown(filled))


def _compare(recorded: Mapping[str, float], measured: "Measured", tolerance: float, form: "Form") -> None:
    """Raise CheckpointError when a measured metric differs from the recorded one by more than tolerance."""
    for name, value in measured.metrics.items():
        before = recorded.get(name, value)
        if abs(value - before) <= tolerance * max(1.0, abs(before)):  # False when either is NaN
            continue
        costs = "" if form.dtype == "float32" else f" Try dtype=float32: {form.dtype} may cost as much."
        raise CheckpointError(
            f"{name} is {value:.4f}, measured again on the {measured.samples} images of {measured.split}, "
            f"and {before:.4f} was recorded; tolerance={tolerance:g} does not allow that, so nothing is "
            f"released.{costs}"
        )


def _finish(root: Path, written: Manifest, key: Path | None, options: argparse.Namespace) -> Path | None:
    """Sign the release and set its alias; a failure of either leaves it released."""
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
            reason = options.reason or f"released as {options.alias}"
            aliases.assign(root, options.alias, options.version, reason)
    except CheckpointError as error:
        raise CheckpointError(
            f"{options.version} is released as {root / written.file}, but {error}"
        ) from None
    finally:
        changelog.refresh(root)
    return signed


def _print(
    promotion: Promotion, written: Manifest | None, signed: Path | None, options: argparse.Namespace
) -> None:
    made, root = promotion.release, promotion.root
    files = {}
    if written is not None:
        mark = Path(written.file).with_suffix(".json").as_posix()
        paths = [written.file, *companions.listed(written), mark]
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


def _print_json(promotion: Promotion, files: Mapping[str, int], options: argparse.Namespace) -> None:
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
            "recorded": promotion.recorded,
            "measured": promotion.measured.metrics,
            "sparsity": made.sparsity,
            "form": vars(made.form),
            "written": files,
            "alias": options.alias,
            "dry_run": options.dry_run,
        }
    )
