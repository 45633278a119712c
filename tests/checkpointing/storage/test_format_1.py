"""What versions with nothing but SHA-256 wrote is resumed, verified, loaded and mirrored as before."""

import json
import uuid

import pytest

from peakpoint.base.digests import SHA256, digest_of
from peakpoint.checkpointing.storage import listing, store
from peakpoint.checkpointing.storage.manifest import sealed
from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands import dispatch as cli
from peakpoint.deployment.release import release
from tests.checkpointing.checkpoint_cases import damage, manifest, saved
from tests.checkpointing.publish_cases import small
from tests.conftest import TINY, run_main


def as_format_1(root):
    """Rewrite every manifest as it was before the algorithm had a name."""
    for mark in [*root.glob("[tmp]*/*.json")]:
        raw = json.loads(mark.read_text())
        if "digest" not in raw:
            continue
        del raw["check"], raw["digest"]
        raw["format"] = 1
        raw["sha256"] = digest_of(mark.with_suffix(".pt"), SHA256).partition(":")[2]
        if sides := raw.pop("companions", None):
            raw["metadata"]["digests"] = {name: each.partition(":")[2] for name, each in sides.items()}
        mark.write_text(sealed(json.dumps(raw, indent=2)))
    return root


def test_the_algorithm_of_each_tier_is_named(tmp_path):
    target = Store(tmp_path, "run")
    found = [saved(target), saved(target, "milestone/b.pt"), release.write(tmp_path, small("1.0.0"))]
    assert [m.digest.partition(":")[0] for m in found] == ["blake3", "blake3", "sha256"]
    assert set(found[2].companions.values()) == {
        digest_of(tmp_path / name, SHA256) for name in found[2].companions
    }


def test_checkpoints_and_releases_verify_and_damage_is_seen(tmp_path, capsys):
    saved(Store(tmp_path, "run"))
    release.write(tmp_path, small("1.0.0"))
    as_format_1(tmp_path)
    assert cli.main(["verify", str(tmp_path)]) == 0
    assert "2 checked, 0 bad" in capsys.readouterr().out
    for file in (tmp_path / "training/a.pt", *tmp_path.glob("metadata/model_cards/*.json")):
        damage(file)
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "2 checked, 2 bad" in capsys.readouterr().out


def test_a_checkpoint_shares_its_bytes_with_a_new_role(tmp_path):
    target = Store(tmp_path, "run")
    saved(target)
    (old,) = Store(as_format_1(tmp_path), "run").mine()
    role = target.share(old, manifest("milestone/best.pt"))
    assert role.digest == old.digest
    store.verify(tmp_path, role)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_resumes(tmp_path, damaged):
    run = tmp_path / "run"
    assert run_main(*TINY, "epochs=2", f"hydra.run.dir={run}").code == 0
    before = listing.manifests(as_format_1(run / "checkpoints"))
    if damaged:
        damage(run / "checkpoints" / before[-1].file)
    run_main(f"resume={run}", "epochs=3").succeeded()
    moved = list(run.glob("checkpoints/quarantine/*.pt"))
    assert len(moved) == damaged
    assert {m.digest.partition(":")[0] for m in listing.manifests(run / "checkpoints")} <= {
        "blake3",
        "sha256",
    }
    assert cli.main(["verify", str(run)]) == 0


def test_a_run_goes_to_a_mirror_and_back(tmp_path):
    saved(Store(tmp_path / "run" / "checkpoints", "run"))
    url = f"memory://{uuid.uuid4().hex}"
    as_format_1(tmp_path / "run" / "checkpoints")
    assert cli.main(["push", str(tmp_path / "run"), url, "--what", "training", "--verify"]) == 0
    assert cli.main(["pull", url, str(tmp_path / "back")]) == 0
    assert cli.main(["verify", str(tmp_path / "back")]) == 0
