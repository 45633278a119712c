"""verify and repair where releases lie: every file of each, the network itself, pointers, the journal."""

import json
import multiprocessing
import os
import re
import time

import pytest
from torch.nn import functional

from peakpoint import CheckpointError, load_model
from peakpoint.base.files import staged_name
from peakpoint.deployment.release import release
from tests.checkpointing.checkpoint_cases import damage
from tests.checkpointing.publish_cases import SAFE, files, journaled, small, sound


@pytest.fixture
def root(tmp_path):
    """Three releases, the highest one as safetensors, and one that nobody can rebuild."""
    release.write(tmp_path, small("1.0.0"))
    release.write(tmp_path, small("1.1.0", seed=1))
    release.write(tmp_path, small("1.2.0", seed=2, form=SAFE))
    release.write(tmp_path, small("1.0.1", description=None, config={}))
    return tmp_path


def test_sound_releases_are_sound_with_their_networks_run(root, cli_main):
    assert re.fullmatch(r"4 checked, 0 bad, \d+\.\d kB sound\n", cli_main("verify", root)[1])
    out = cli_main("verify", "--golden", root).output()
    assert "4 checked, 0 bad" in out
    assert "3 releases agree with their golden outputs, 1 has none" in out
    for name in ("lenet5_v1.2.0.safetensors", "lenet5_v1.2.0.json", "latest.safetensors", "lenet5_v1.0.0.pt"):
        assert cli_main("verify", "--golden", root / "production" / name)[0] == 0
    out = cli_main("ls", root, "--verify", "--json").succeeded().out
    assert [m["file"].split("_v")[1] for m in json.loads(out)] == [
        "1.0.0.pt", "1.0.1.pt", "1.1.0.pt", "1.2.0.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["1.1.0", "1.2.0"])
@pytest.mark.parametrize("flip", [True, False])
def test_damage_to_any_file_is_one_bad_release(root, cli_main, version, flip):
    for victim in files(root, version):
        whole = victim.read_bytes()
        damage(victim, flip=flip)
        code, out, err = cli_main("verify", root)
        assert (code, err) == (1, ""), victim
        assert out.count("bad: ") == 1
        assert str(victim.with_suffix("")) in out
        assert cli_main("ls", root, "--verify")[0] == 1
        victim.write_bytes(whole)
    assert cli_main("verify", root)[0] == 0


def test_a_release_without_manifest_or_weights(root, cli_main):
    production = root / "production"
    (production / "lenet5_v1.2.0.json").unlink()
    (production / "lenet5_v1.0.0.pt").unlink()
    out = cli_main("verify", root).failed().out
    assert f"bad: {production / 'lenet5_v1.0.0.pt'} cannot be read: No such file" in out
    assert f"bad: {production / 'lenet5_v1.2.0.safetensors'} has no manifest beside it" in out


def test_a_stray_beside_a_release_of_the_other_suffix(root, cli_main):
    stray = root / "production" / "lenet5_v1.2.0.pt"
    stray.write_bytes((root / "production" / "lenet5_v1.1.0.pt").read_bytes())
    out = cli_main("verify", root).failed().out
    assert out.count("bad: ") == 1
    assert f"bad: {stray} has no manifest beside it" in out
    with pytest.raises(CheckpointError, match=r"v1\.2\.0\.pt is not the file of its manifest, which is"):
        load_model(stray)
    assert cli_main("repair", root)[0] == 0
    assert {p.name[7:] for p in (root / "quarantine").iterdir()} == {
        "production_lenet5_v1.2.0.pt",
        "production_lenet5_v1.2.0.txt",
    }
    assert sound(root) == ["1.0.0", "1.0.1", "1.1.0", "1.2.0"]


def test_a_release_that_is_being_written_is_not_taken_for_a_stray(root, cli_main):
    def busy():
        real = os.fsync
        # The window in which a file has its name and no manifest yet, made wide.
        os.fsync = lambda descriptor: (time.sleep(0.005), real(descriptor))
        for number in range(3, 9):
            release.write(root, small(f"1.{number}.0", form=SAFE))

    # Forked from this thread: a fork beside a thread that imports inherits the lock of that import.
    child = multiprocessing.get_context("fork").Process(target=busy)
    child.start()
    looked = 0
    while child.is_alive():
        looked += 1
        for command in ("verify", "repair"):
            assert "has no manifest" not in cli_main(command, root).output()
    assert child.exitcode == 0
    assert len(sound(root)) == 10
    assert looked > 3
    assert not (root / "quarantine").exists()


def test_code_that_makes_another_network_shows_in_golden_outputs_alone(root, cli_main, monkeypatch):
    monkeypatch.setattr(functional, "relu", functional.leaky_relu)
    assert cli_main("verify", root)[0] == 0
    out = cli_main("verify", "--golden", root).failed().out
    assert out.count("bad: ") == 3
    assert "v1.2.0.safetensors: The network is not the one that was released" in out
    out = cli_main("verify", "--golden", root, "--json").out
    problems = {m["file"]: m["problem"] for m in json.loads(out)}
    assert problems["production/lenet5_v1.0.1.pt"] is None
    assert "a golden output is off by" in problems["production/lenet5_v1.0.0.pt"]


def test_repair_sets_a_damaged_release_aside_with_all_that_lies_beside_it(root, cli_main):
    damage(root / "production" / "lenet5_v1.2.0.safetensors")
    assert cli_main("repair", root)[0] == 0
    assert sound(root) == ["1.0.0", "1.0.1", "1.1.0"]
    names = {p.name[7:] for p in (root / "quarantine").iterdir()}
    stem = "production_lenet5_v1.2.0"
    assert names == {f"{stem}{end}" for end in (".safetensors", ".json", ".config.json", ".txt")}
    links = {p.name: str(p.readlink()) for p in (root / "production").iterdir() if p.is_symlink()}
    assert links == {"latest.pt": "lenet5_v1.1.0.pt"}
    assert cli_main("verify", root)[0] == 0


def test_repair_brings_back_pointer_and_journal_and_sweeps_what_a_killed_release_left(root, cli_main):
    production = root / "production"
    (production / "latest.safetensors").unlink()
    (production / "latest.pt").symlink_to("lenet5_v1.0.0.pt")
    (root / "metadata" / "journal.jsonl").unlink()
    for folder in (production, root / "metadata" / "golden", root / "metadata" / "model_cards"):
        staged_name(folder / "x").write_bytes(b"half")
    out = cli_main("repair", root).succeeded().out
    assert out.count("journal  ") == 4
    assert out.count("sweep  ") == 3
    links = {p.name: str(p.readlink()) for p in production.iterdir() if p.is_symlink()}
    assert links == {"latest.safetensors": "lenet5_v1.2.0.safetensors"}
    assert sorted(journaled(root)) == ["1.0.0", "1.0.1", "1.1.0", "1.2.0"]
    assert not list(root.rglob(".staged-*"))
    assert "0 repairs done" in cli_main("repair", root).succeeded().out
