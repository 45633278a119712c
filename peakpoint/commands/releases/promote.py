"""promote: a checkpoint becomes a release, once it measures as recorded. Imports torch when called."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base import given, semver
from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import check_folder
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.storage import aliases, listing, locate
from peakpoint.checkpointing.storage.manifest import PRODUCTION, Manifest, companions_of
from peakpoint.commands.arguments import EVALUATION, RULES, Argument, a_path, path_argument, takes
from peakpoint.commands.common import check_there, checkpoint_roots, no_manifest, print_json
from peakpoint.commands.releases import run_facts, settings
from peakpoint.commands.releases.select import short
from peakpoint.deployment.release import card, card_page, changelog, publish, signing
from peakpoint.deployment.selection import rules

if TYPE_CHECKING:
    from torch import nn

    from peakpoint.deployment.inference.evaluate import Measured
    from peakpoint.deployment.release.release import Release


@takes(
    path_argument("path", "RUN|SWEEP|FILE", "runs, for what select chooses among them, or a .pt file"),
    Argument("--version", required=True, metavar="X.Y.Z", help="semantic, and never used before"),
    Argument("--into", type=a_path, metavar="DIR", help="a folder of checkpoints, such as prod"),
    Argument("--alias", metavar="NAME", help="name it as well: champion, challenger_1"),
    Argument("--reason", metavar="TEXT", help="why, for the journal and the card"),
    Argument("--card", type=a_path, metavar="FILE", help="texts as in conf/release/card.yaml"),
    Argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of conf/release"),
    Argument("--dry-run", action="store_true", help="measure and check, and write nothing"),
    RULES,
    *EVALUATION,
)
def promote(options: argparse.Namespace) -> int:
    """Measure a checkpoint again in the form of the release, and release it."""
    chosen, key = _checked(options)
    into = _target(options.into) if options.into else None
    whole = options.path.is_dir()
    sources = checkpoint_roots(options.path) if whole else [options.path.absolute().parent.parent]
    if into or len(sources) == 1:  # of several runs, the one that is chosen is asked later
        semver.check_unused(options.version, publish.taken(into or sources[0]))
    if whole:
        texts = chosen.texts(options.card, {})
        source_root, manifest = _selected(sources, into, options)
    else:
        source_root, manifest = locate.locate(options.path)
        earlier = run_facts.card_of(source_root, manifest) if manifest.tier == PRODUCTION else {}
        texts = chosen.texts(options.card, earlier)
    root = into or source_root
    made, recorded, measured = _prepared(source_root, manifest, root, texts, chosen, options)
    facts = {
        "version": made.version,
        "name": made.name,
        "root": str(root),
        "file": made.file,
        "source": str(source_root / manifest.file),
        "split": measured.split,
        "samples": measured.samples,
        "recorded": recorded,
        "measured": measured.metrics,
        "sparsity": made.sparsity,
        "form": vars(made.form),
        "written": {} if options.dry_run else _written(root, made, key, options),
        "alias": options.alias,
        "dry_run": options.dry_run,
    }
    if options.json:
        print_json(facts)
    else:
        _print(facts, f"epoch {made.epoch}, step {made.global_step}")
    return 0


def _checked(options: argparse.Namespace) -> tuple[settings.Settings, Path | None]:
    """Return the settings and the key to sign with. Raises CheckpointError before anything large is read."""
    semver.key(options.version)
    check_there(options.path, options.data_root)
    file = options.path
    if file.is_file() and not file.is_symlink() and not file.with_suffix(".json").exists():
        raise CheckpointError(no_manifest(file))
    chosen = settings.load(options.set, options.card)
    if options.path.is_dir():
        rules.load(options.rules)
    if options.alias:
        aliases.check(options.alias)
    key = given.path(chosen.sign) if chosen.sign else None
    if key:
        signing.check_key(key)
    return chosen, key


def _target(folder: Path) -> Path:
    """Return the checkpoint root of --into, which need not exist yet, and lies in no other."""
    try:
        root = listing.checkpoint_root(folder)
    except CheckpointError:
        check_folder(folder)
        root = folder
    listing.check_outside(root)
    return root


def _selected(roots: Sequence[Path], into: Path | None, options: argparse.Namespace) -> tuple[Path, Manifest]:
    """Return the choice of `select`, verified, with its root, against the champion of the target root."""
    from peakpoint.deployment.selection import select

    champion_of = into if into and listing.is_root(into) else None
    found = select.choose(
        roots,
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
    return found.winner


def _prepared(
    source_root: Path,
    manifest: Manifest,
    root: Path,
    texts: Mapping[str, Any],
    chosen: settings.Settings,
    options: argparse.Namespace,
) -> tuple["Release", Mapping[str, float], "Measured"]:
    """Return the release with its card, not written yet, and its metrics as recorded and as measured again.

    Raises CheckpointError when they differ by more than the tolerance, and for weights that are not finite.
    """
    from peakpoint.checkpointing.state import objects
    from peakpoint.deployment.inference import evaluate, network
    from peakpoint.deployment.release import release
    from peakpoint.deployment.selection.measure import differences

    form = chosen.form()
    chosen_by = f"chosen by the rules {Path(options.rules).stem}, kept for: " if options.path.is_dir() else ""
    reason = options.reason or chosen_by + "; ".join(manifest.reasons)
    made = release.of(source_root, manifest, version=options.version, form=form, reason=reason)
    release.check(root, made)
    trained_with = made.trained_with
    if made.description is None or trained_with is None:
        raise CheckpointError(f"{manifest.file} has no record of its training: choose another.")
    record = run_facts.read(source_root, manifest, trained_with["config"])
    rebuilt = network.build(made.description, made.weights, trained_with["config"])
    objects.check_finite(rebuilt)
    where = {"data_root": options.data_root, "device": options.device}
    measured = evaluate.measure(rebuilt, trained_with, split=chosen.split, **where)
    tested = record.tested()
    recorded = manifest.metrics if chosen.split == "val" else tested.metrics if tested else {}
    if wrong := differences(recorded, measured.metrics, chosen.tolerance):
        remedy = "" if form.dtype == "float32" else f" It may be the cost of {form.dtype}: try dtype=float32."
        raise CheckpointError(
            f"Measured again on the {measured.samples} images of {measured.split}, {'; '.join(wrong)}: "
            f"tolerance={chosen.tolerance:g} does not allow that, so nothing is released.{remedy}"
        )
    made = _with_card(made, rebuilt, texts, record, measured)
    return replace(made, golden_inputs=chosen.golden), recorded, measured


def _with_card(
    made: "Release",
    rebuilt: "nn.Module",
    texts: Mapping[str, Any],
    record: run_facts.RunRecord,
    measured: "Measured",
) -> "Release":
    """Return the release with its measured metrics and its card."""
    from peakpoint.optimizers import scope
    from peakpoint.optimizers.parameters import zeros

    counts = {
        "parameters": sum(p.numel() for p in rebuilt.parameters()),
        "nonzero": sum(int(p.count_nonzero()) for p in rebuilt.parameters()),
        "sparsity": zeros(rebuilt, scope.recorded((made.trained_with or {}).get("config"))).prunable,
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
        results=record.results(card.Result(measured.split, measured.samples, measured.metrics, of)),
        record=record.facts((made.trained_with or {}).get("fingerprint") or {}, made.reason),
    )
    return replace(made, card=filled, card_text=card_page.markdown(filled))


def _written(root: Path, made: "Release", key: Path | None, options: argparse.Namespace) -> dict[str, int]:
    """Write the release, sign it and set its alias; return its files with their bytes.

    Raises CheckpointError: a failure to sign or to set the alias leaves it released.
    """
    from peakpoint.deployment.release import release

    manifest = release.write(root, made)
    mark = Path(manifest.file).with_suffix(".json")
    files = [manifest.file, *companions_of(manifest), mark.as_posix()]
    by_hand = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", signing.NAMESPACE, str(root / mark)]
    undone, remedy = "signed", f" To sign it: {shlex.join(by_hand)}"
    try:
        if key:
            files.append(signing.sign(root / mark, key).relative_to(root).as_posix())
        undone, remedy = str(options.alias), ""
        if options.alias:
            aliases.assign(
                root, options.alias, made.version, options.reason or f"released as {options.alias}"
            )
    except (CheckpointError, OSError) as error:
        raise CheckpointError(
            f"{made.version} is released as {root / manifest.file}, but it is not {undone}: {error}{remedy}"
        ) from None
    finally:
        changelog.refresh(root)
    return {file: (root / file).stat().st_size for file in files}


def _print(facts: Mapping[str, Any], place: str) -> None:
    console, root, recorded = Console(), Path(facts["root"]), facts["recorded"]
    console.say(f"{facts['name']} {facts['version']} from {short(Path(facts['source']))} ({place})")
    console.say("")
    rows = [
        [name, shown(name, recorded.get(name)), shown(name, value)]
        for name, value in facts["measured"].items()
    ]
    console.table([f"{facts['split']}, {facts['samples']} images", "recorded", "measured"], rows)
    console.say("")
    form = facts["form"]
    packed = ", zeros packed" * form["compress"]
    console.say(f"{form['format']}, {form['dtype']}{packed}, sparsity {shown('sparsity', facts['sparsity'])}")
    if facts["dry_run"]:
        console.say(f"not written: --dry-run. It would be {short(root / facts['file'])}")
        return
    for path, size in facts["written"].items():
        console.say(f"wrote  {short(root / path)}  {in_words(size)}")
    if facts["alias"]:
        console.say(f"{facts['alias']} is {facts['version']} now")
