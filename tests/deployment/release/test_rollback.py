"""Rolling back: the earlier release is verified first, and one line of the journal switches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peakpoint import load_model
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.checkpointing.storage.manifest import sealed
from peakpoint.deployment.inference import network
from peakpoint.deployment.release import release, rollback
from peakpoint.deployment.release.rollback import roll_back
from tests.checkpointing.checkpoint_cases import damage, points
from tests.checkpointing.release_cases import DESCRIPTION, gone, history, released
from tests.conftest import one_line


@pytest.fixture
def served(served):
    """Return releases with three champions one after the other; 1.10.0 was never one."""
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        aliases.assign(served, "champion", version, "better")
    return served


def weight(root):
    """Return the number of the release that the folder stands for, from its weights."""
    return round(next(load_model(root).parameters()).flatten()[0].item() * 100) - 1


def refused(root, what, **asked):
    """Expect a refusal in one line that changes nothing."""
    before = aliases.current(root), history(root)
    with one_line(CheckpointError) as error:
        roll_back(root, **asked)
    assert what in str(error.value)
    assert (aliases.current(root), history(root)) == before


def test_back_to_the_one_before_and_further(served):
    done = roll_back(served, reason="wrong on cats")
    assert (done.change.before, done.change.version) == ("1.2.0", "1.1.0")
    assert (done.change.how, done.change.reason) == ("rolled back", "wrong on cats")
    assert done.checked == ("digests", "network", "golden outputs")
    assert weight(served) == 1
    assert points(served / "production" / "champion.pt") == "le_net5_v1.1.0.pt"
    assert points(served / "production" / "latest.pt") == "le_net5_v1.10.0.pt"
    roll_back(served)
    assert weight(served) == 0
    refused(served, "champion has no earlier release: name one with --to; there are 1.0.0, 1.1.0, 1.2.0")
    assert (
        "no longer champion, which is 1.1.0 (rolled back): wrong on cats"
        in (served / "metadata" / "CHANGELOG.md").read_text()
    )


def test_to_a_version_whatever_its_place(served):
    assert roll_back(served, "1.10.0").change.version == "1.10.0"
    assert roll_back(served).change.version == "1.1.0"  # 1.2.0 and 1.10.0 were rolled back from
    assert history(served) == ["1.0.0", "1.1.0", "1.2.0", "1.10.0", "1.1.0"]


def test_of_another_alias_and_of_one_that_was_taken_away(served):
    aliases.assign(served, "challenger_1", "1.10.0", "")
    aliases.assign(served, "challenger_1", None, "")
    assert roll_back(served, alias="challenger_1").change.version == "1.10.0"
    assert aliases.current(served) == {"champion": "1.2.0", "challenger_1": "1.10.0"}
    refused(served, "'best' is not an alias", alias="best")


def test_without_a_champion_a_version_must_be_named(tmp_path):
    root = released(tmp_path / "served", "1.0.0", "1.1.0")
    refused(root, "champion has no earlier release: name one with --to; there are 1.0.0, 1.1.0.")
    assert weight(root) == 1
    assert roll_back(root, "1.0.0").change.before is None
    assert weight(root) == 0


@pytest.mark.parametrize(
    "file",
    [
        "production/le_net5_v1.1.0.pt",
        "production/le_net5_v1.1.0.config.json",
        "metadata/model_cards/v1.1.0.json",
        "metadata/golden/v1.1.0.safetensors",
    ],
)
@pytest.mark.parametrize("harm", ["gone", "flipped", "cut"])
def test_a_damaged_file_of_the_release_is_refused_before_anything_switches(served, file, harm):
    if harm == "gone":
        (served / file).unlink()
    else:
        damage(served / file, flip=harm == "flipped")
    refused(served, "champion stays 1.2.0.")
    assert weight(served) == 2
    roll_back(served, "1.0.0")
    assert weight(served) == 0


def rewritten(root, version, **changes):
    """Change a manifest and seal it again, as another program would write it."""
    path = next((root / "production").glob(f"*_v{version}.json"))
    plain = json.loads(path.read_text())
    del plain["check"]
    path.write_text(sealed(json.dumps({**plain, **changes}, indent=2)))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"mean": (0.1, 0.1, 0.9)}, "The network is not the one that was released"),
        ({"classes": ("a", "b")}, "The checkpoint is of another network"),
    ],
)
def test_weights_that_do_not_fit_their_network_or_answer_otherwise_are_refused(served, changed, what):
    rewritten(served, "1.1.0", config=replace(DESCRIPTION, **changed).config())
    refused(served, what)


def test_a_release_that_does_not_say_its_network_is_verified_by_its_digests(tmp_path):
    root = released(tmp_path / "served", "1.0.0", "1.1.0", config={"model": "my own"})
    aliases.assign(root, "champion", "1.1.0", "")
    assert roll_back(root, "1.0.0").checked == ("digests",)
    damage(root / "metadata" / "model_cards" / "v1.1.0.json")
    refused(root, "champion stays 1.0.0.", to="1.1.0")


def test_what_cannot_be_is_one_line(served):
    refused(served, "champion is 1.2.0 already.", to="1.2.0")
    refused(served, "has no release 3.0.0; there are 1.0.0, 1.1.0, 1.2.0, 1.10.0.", to="3.0.0")
    refused(served, "'' is not a semantic version", to="")
    gone(served, "1.1.0")
    refused(served, "has no release 1.1.0; there are 1.0.0, 1.2.0, 1.10.0.")
    gone(served, "1.2.0")
    with pytest.raises(CheckpointError, match="roll back to one that is"):
        network.resolve(served)
    roll_back(served, "1.0.0")
    assert weight(served) == 0


def test_whoever_switches_while_it_verifies_is_not_undone(served, monkeypatch):
    real = rollback.verified

    def verified(root, manifest):
        aliases.assign(root, "champion", "1.10.0", "by another process")
        return real(root, manifest)

    monkeypatch.setattr(rollback, "verified", verified)
    with pytest.raises(CheckpointError, match=r"^champion was set to 1\.10\.0 while 1\.1\.0 was verified"):
        roll_back(served)
    assert history(served)[-1] == "1.10.0"


def test_a_release_in_another_form_brings_its_own_pointer(tmp_path, served):
    form = release.Form(format="safetensors", dtype="float32", compress=False)
    manifest = listing.by_version(served)["1.2.0"]
    made = release.write(served, release.of(served, manifest, version="1.3.0", form=form, reason="safer"))
    aliases.assign(served, "champion", "1.3.0", "")

    def pointers():
        return {p.name: points(p) for p in (served / "production").glob("champion.*")}

    assert pointers() == {"champion.safetensors": Path(made.file).name}
    assert weight(served) == 2
    roll_back(served)
    assert pointers() == {"champion.pt": "le_net5_v1.2.0.pt"}
    roll_back(served, "1.3.0")
