"""promote: a checkpoint becomes a release, once it is seen to be what its record says."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from checkpointing import (
    aliases,
    card,
    cardpage,
    changelog,
    digests,
    evaluating,
    finding,
    given,
    living,
    network,
    publishing,
    release,
    rules,
    select,
    signing,
    versions,
)
from checkpointing.card import Facts, Result
from checkpointing.commands import runrecord, settings
from checkpointing.commands.common import line, megabytes, print_json
from checkpointing.commands.runrecord import RunRecord
from checkpointing.commands.select import shown
from checkpointing.errors import CheckpointError
from checkpointing.evaluating import Measured
from checkpointing.manifest import Manifest, encode
from checkpointing.release import Form, Release
from checkpointing.terminal import Console


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What is released from which checkpoint, under which root; `recorded` is what it was compared with."""

    root: Path
    source: Path
    release: Release
    recorded: Mapping[str, float]
    measured: Measured


def promote(options: argparse.Namespace) -> int:
    """Measure a checkpoint again, as it will be released, and release it."""
    chosen, key = _asked(options)
    into = _target(options.into) if options.into else None
    if options.path.is_dir():
        source_root = finding.checkpoint_root(options.path)
        texts = _texts(chosen, options.card, {})
        versions.check_unused(options.version, publishing.taken(into or source_root))
        manifest = _selected(source_root, into, options)
    else:
        source_root, manifest = finding.locate(options.path)
        released = manifest.tier == finding.PRODUCTION
        texts = _texts(chosen, options.card, runrecord.card_of(source_root, manifest) if released else {})
    root = into or source_root
    promotion = _prepared((source_root, manifest), root, texts, chosen, options)
    written, signed = None, None
    if not options.dry_run:
        written = release.write(root, promotion.release)
        signed = _afterwards(root, written, key, options)
    _tell(promotion, written, signed, options)
    return 0


def _asked(options: argparse.Namespace) -> tuple[settings.Settings, Path | None]:
    """The settings and the key to sign with: what can be told to be wrong before anything is read."""
    chosen = settings.load(options.set, options.card)
    versions.key(options.version)
    chosen.form()
    if options.alias:
        aliases.check(options.alias)
    key = given.path(chosen.sign) if chosen.sign else None
    if key:
        signing.check_key(key)
    return chosen, key


def _selected(root: Path, into: Path | None, options: argparse.Namespace) -> Manifest:
    """What `select` chooses of a run, verified; the champion is that of where the release will lie."""
    champion_of = into if into and finding.is_root(into) else None
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
        raise CheckpointError(f"{found.nothing()} To see why: python -m checkpointing {shlex.join(again)}")
    return found.winner[1]


def _target(folder: Path) -> Path:
    """The checkpoint root that a release is to lie in; made by the write when it is new."""
    try:
        return finding.checkpoint_root(folder)
    except CheckpointError:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"--into {folder} is a file: name a folder.") from None
        return folder


def _texts(chosen: settings.Settings, file: Path | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What the makers say; of a release that is released again, what its card says where nothing else is."""
    said = {name: value for name, value in asdict(chosen.card).items() if card.lines_of(value)}
    said = {name: earlier[name] for name in asdict(chosen.card) if earlier.get(name)} | said
    where = file or settings.RELEASE / settings.CARD
    hint = "" if file else ", in a file of your own (--card FILE),"
    card.check(said, f"them in {where}{hint} or with --set card.NAME=TEXT")
    return said


def _prepared(
    source: tuple[Path, Manifest],
    root: Path,
    texts: Mapping[str, Any],
    chosen: settings.Settings,
    options: argparse.Namespace,
) -> Promotion:
    """The release, with all that is known of it, checked and measured but not written."""
    source_root, manifest = source
    form = chosen.form()
    reason = options.reason or _reason(manifest, options)
    made = release.of(source_root, manifest, version=options.version, form=form, reason=reason)
    release.check(root, made)
    if made.description is None or made.trained_with is None:
        raise CheckpointError(
            f"{manifest.file} does not say what it was trained with: it cannot be measured."
        )
    trained_with = made.trained_with
    record = runrecord.read(source_root, manifest, trained_with["config"])
    rebuilt = network.build(made.description, config=made.trained_with["config"])
    living.load_weights(rebuilt, made.weights)
    living.check_finite(rebuilt)
    measured = evaluating.measure(
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


def _reason(manifest: Manifest, options: argparse.Namespace) -> str:
    """What to tell of a release of which nobody said why."""
    kept = "; ".join(manifest.reasons)
    if not options.path.is_dir():
        return kept
    return f"chosen by the rules {Path(options.rules).stem}, kept for: {kept}"


def _with_card(
    made: Release, rebuilt: nn.Module, texts: Mapping[str, Any], record: RunRecord, measured: Measured
) -> Release:
    """The release with what was measured of it as its metrics, and with its card."""
    counts = {
        "parameters": sum(p.numel() for p in rebuilt.parameters()),
        "nonzero": sum(int(torch.count_nonzero(p)) for p in rebuilt.parameters()),
        "sparsity": evaluating.sparsity(rebuilt),
    }
    made = replace(
        made,
        metrics={**made.metrics, **measured.metrics} if measured.split == "val" else made.metrics,
        sparsity=counts["sparsity"],
    )
    of = f"the released weights, {made.form.dtype}, evaluated at the release"
    facts = Facts(
        version=made.version,
        model=made.config,
        weights={**vars(made.form), **counts},
        results=record.results(Result(measured.split, measured.samples, measured.metrics, of)),
        data=record.data((made.trained_with or {}).get("fingerprint") or {}),
        training=record.training(),
        provenance=record.provenance(made.reason),
    )
    filled = card.build(texts, facts)
    return replace(made, card=filled, card_text=cardpage.markdown(filled))


def _compare(recorded: Mapping[str, float], measured: Measured, tolerance: float, form: Form) -> None:
    """Raise CheckpointError when what is measured is not what was recorded."""
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
    promotion: Promotion, written: Manifest | None, signed: Path | None, options: argparse.Namespace
) -> None:
    made, root = promotion.release, promotion.root
    files = {}
    if written is not None:
        paths = [written.file, *digests.listed(written), Path(written.file).with_suffix(".json").as_posix()]
        paths += [signed.relative_to(root).as_posix()] if signed else []
        files = {path: (root / path).stat().st_size for path in paths}
    if options.json:
        _print_json(promotion, files, options)
        return
    console = Console()
    epoch = f"epoch {made.epoch}, step {made.global_step}"
    line(console, f"{made.name} {made.version} from {shown(promotion.source)} ({epoch})")
    line(console, "")
    rows = [
        [name, f"{promotion.recorded[name]:.4f}" if name in promotion.recorded else "-", f"{value:.4f}"]
        for name, value in promotion.measured.metrics.items()
    ]
    images = f"{promotion.measured.split}, {promotion.measured.samples} images"
    console.table([images, "recorded", "measured"], rows)
    line(console, "")
    sparsity = f", sparsity {made.sparsity:.4f}" if made.sparsity is not None else ""
    line(console, f"{made.form.format}, {made.form.dtype}{', zeros packed' * made.form.compress}{sparsity}")
    if written is None:
        line(console, f"not written: --dry-run. It would be {shown(root / made.file)}")
        return
    for path, size in files.items():
        length = megabytes(size) if size >= 50_000 else f"{size:,} bytes"
        line(console, f"wrote  {shown(root / path)}  {length}")
    if options.alias:
        line(console, f"{options.alias} is {made.version} now")


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
            "recorded": {name: encode(value) for name, value in promotion.recorded.items()},
            "measured": {name: encode(value) for name, value in promotion.measured.metrics.items()},
            "sparsity": made.sparsity,
            "form": vars(made.form),
            "written": files,
            "alias": options.alias,
            "dry_run": options.dry_run,
        }
    )
