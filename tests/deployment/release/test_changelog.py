"""The changelog: made of manifests and the journal alone, the same each time, whatever words are in them."""

import fcntl
import json
import os
import re
from datetime import UTC, datetime

import pytest

from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.deployment.inference import network
from peakpoint.deployment.release import changelog, release
from tests.checkpointing.checkpoint_cases import files_no_larger_than
from tests.checkpointing.release_cases import gone
from tests.conftest import TINY, complete_run

FORM = release.Form(format="pt", dtype="float32", compress=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the networks of two real runs that differ in their seed and sparsity, released in one place."""
    folder = tmp_path_factory.mktemp("runs")
    for version, more in (("1.0.0", ("pruning.target=0.5",)), ("2.0.0", ("pruning.target=0.8", "seed=3"))):
        run = folder / f"run-{version}"
        complete_run(run, *TINY, "epochs=1", "optimizer=adamwprune", *more)
        source, manifest = network.resolve(run)
        made = release.of(source, manifest, version=version, form=FORM, reason=f"release {version} | for all")
        release.write(folder / "served", made)
    return folder / "served"


def sections(text):
    """Return the lines below each version."""
    parts = re.split(r"^## \[(.+?)\].*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_it_says_what_changed_from_run_to_run(runs):
    first, second = listing.releases(runs)
    found = sections(changelog.write(runs).read_text())
    assert list(found) == ["2.0.0", "1.0.0"]
    assert "release 2.0.0 \\| for all\n" in found["2.0.0"]
    assert f"run `{second.run}`, file `{second.metadata['source']['file']}`" in found["2.0.0"]
    assert f"commit `{second.git_commit}`" in found["2.0.0"]
    old, new = first.metrics["accuracy"], second.metrics["accuracy"]
    assert f"| accuracy | {old:.6g} | {new:.6g} | {new - old:+.4g} |" in found["2.0.0"]
    old, new = first.sparsity, second.sparsity
    assert old == pytest.approx(0.5, abs=0.01)
    assert f"| sparsity | {old:.6g} | {new:.6g} | {new - old:+.4g} |" in found["2.0.0"]
    old, new = first.bytes, second.bytes
    change = f"{'+' if new > old else '-'}{in_words(abs(new - old))}"
    assert f"| size | {in_words(old)} | {in_words(new)} | {change} |" in found["2.0.0"]
    assert "- `pruning.target`: `0.5` to `0.8`\n" in found["2.0.0"]
    assert "- `seed`: `0` to `3`\n" in found["2.0.0"]
    assert "`epochs`" not in found["2.0.0"]
    assert "### Training configuration" not in found["1.0.0"]
    assert f"| accuracy | {first.metrics['accuracy']:.6g} |" in found["1.0.0"]


def test_versions_are_in_their_order_and_each_is_compared_with_the_one_before(served):
    found = {entry.version: entry.before for entry in changelog.entries(served)}
    assert list(found.items()) == [
        ("1.10.0", "1.2.0"),
        ("1.2.0", "1.1.0"),
        ("1.1.0", "1.0.0"),
        ("1.0.0", None),
    ]


def test_who_held_an_alias_when(served):
    for version in ("1.0.0", "1.1.0"):
        aliases.assign(served, "champion", version, "a *bold*\n# <claim>")
    aliases.assign(served, "champion", None, "")
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    text = changelog.write(served).read_text()
    found = sections(text)
    reason = "a \\*bold\\* # \\<claim\\>"
    assert re.search(rf"- {now} \S+: champion: {re.escape(reason)}\n", found["1.0.0"])
    assert re.search(
        rf"- {now} \S+: no longer champion, which is 1.1.0: {re.escape(reason)}\n", found["1.0.0"]
    )
    assert re.search(rf"- {now} \S+: champion in place of 1.0.0: ", found["1.1.0"])
    assert re.search(rf"- {now} \S+: no longer champion\n", found["1.1.0"])
    assert "champion" not in found["1.2.0"]
    assert "\n- champion: " not in text.split("## [")[0]
    aliases.assign(served, "champion", "1.2.0", "")
    assert "\n- champion: 1.2.0\n" in changelog.write(served).read_text().split("## [")[0]


def test_a_release_whose_files_are_gone_is_still_reported(served):
    gone(served, "1.1.0")
    found = sections(changelog.write(served).read_text())
    assert list(found) == ["1.10.0", "1.2.0", "1.1.0", "1.0.0"]
    assert "`production/le_net5_v1.1.0.pt`; its files are gone" in found["1.1.0"]
    assert "| | 1.0.0 | 1.2.0 | change |" in found["1.2.0"]


def test_a_release_whose_manifest_is_damaged_is_not_called_gone(served):
    (served / "production" / "le_net5_v1.1.0.json").write_text("{")
    section = sections(changelog.write(served).read_text())["1.1.0"]
    assert "`production/le_net5_v1.1.0.pt` (its manifest cannot be read: see peakpoint verify)\n" in section


def test_it_is_no_source_of_truth(served):
    path = changelog.write(served)
    whole, stamp = path.read_bytes(), path.stat().st_ino
    assert changelog.write(served).stat().st_ino == stamp  # nothing to write
    for spoiled in (b"", b"edited by hand"):
        path.write_bytes(spoiled)
        assert changelog.write(served).read_bytes() == whole
    path.unlink()
    assert changelog.write(served).read_bytes() == whole


def test_a_full_disk_leaves_the_one_before_and_is_only_a_warning_after_a_switch(served, warnings):
    path = changelog.write(served)
    whole = path.read_bytes()
    aliases.assign(served, "champion", "1.0.0", "")
    with files_no_larger_than(10):
        with pytest.raises(CheckpointError, match=r"CHANGELOG\.md cannot be written: File too large"):
            changelog.write(served)
        changelog.refresh(served)
    (message,) = warnings()
    assert message.startswith("The changelog is not up to date: ")
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_nothing_changes_between_what_was_read_and_what_is_written(served, monkeypatch):
    """Or a changelog that was read before an alias changed could come last."""
    real, tried = changelog.write_atomic, []

    def write_atomic(path, content):
        descriptor = os.open(served, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        tried.append(path)
        real(path, content)

    monkeypatch.setattr(changelog, "write_atomic", write_atomic)
    assert changelog.write(served) == tried[0]


def test_entries_are_plain_data(runs):
    entry = changelog.entries(runs)[0]
    assert entry.config["pruning.target"] == [0.5, 0.8]
    assert json.dumps(entry.results)
