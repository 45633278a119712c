"""A mirror that a stranger wrote: no name leaves its folder, and nothing large is read."""

import pytest

from peakpoint.checkpointing.remote import layout
from peakpoint.checkpointing.remote.client import Remote
from peakpoint.checkpointing.storage import listing
from tests.commands.checkpoints.remote_cases import place, reseal


@pytest.mark.parametrize(
    "name", ["../../evil.pt", "/evil.pt", ".evil.pt", "a\\..\\evil.pt", "evil\n.pt", "x" * 300 + ".pt"]
)
def test_no_name_from_there_leaves_the_directory(run, url, tmp_path, cli_main, pushed, name):
    text = (run / "checkpoints" / "training" / "a.json").read_bytes()
    data = (run / "checkpoints" / "training" / "a.pt").read_bytes()
    # In the way of a store whose keys are any text.
    pushed.write(f"checkpoints/training/{name}", data)
    pushed.write(f"checkpoints/training/{name.replace('.pt', '.json')}", text)
    before = set(tmp_path.rglob("*"))
    assert cli_main("pull", url, tmp_path / "deep" / "er" / "back")[0] in (0, 1)
    new = {p for p in set(tmp_path.rglob("*")) - before if "evil" in p.name or len(p.name) > 200}
    assert new == set()


@pytest.mark.parametrize(
    "file", ["../../evil", "/tmp/evil", "production/../../evil", "training/evil.pt", ".evil"]
)
def test_a_release_names_no_file_outside_its_folders(url, tmp_path, cli_main, prod, file):
    (manifest,) = listing.releases(prod)
    far = place(url, "prod")
    mark = f"checkpoints/{manifest.file.replace('.pt', '.json')}"
    reseal(far, mark, lambda raw: raw["companions"].update({file: "0" * 64}))
    far.write("checkpoints/evil", b"evil")
    assert "it leaves its folder" in cli_main("pull", url, tmp_path / "back").refusal()
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(bytes=10**15), "says 1000000000000000 bytes"),
        (lambda raw: raw.update(bytes=-1), "bytes is -1"),
        (lambda raw: raw.update(bytes="many"), "bytes is 'many'"),
        (lambda raw: raw.update(format=99), "of format 99"),
        (lambda raw: raw.pop("digest"), "digest"),
    ],
)
def test_a_bad_manifest_is_passed_over(url, tmp_path, cli_main, pushed, change, says):
    reseal(pushed, "checkpoints/training/b.json", change)
    code, out, err = cli_main("pull", url, tmp_path / "back")
    assert (code, err) == (1, "")
    assert says in out
    assert "pulled  training/a.pt" in out


def test_a_manifest_as_large_as_a_bomb_is_not_read(url, tmp_path, cli_main, pushed, monkeypatch):
    pushed.write("checkpoints/training/b.json", b"[" * 100_000)
    pushed.write("checkpoints/training/c.json", b" " * 100_001)
    monkeypatch.setattr(layout, "LARGEST", 100_000)
    code, out, err = cli_main("pull", url, tmp_path / "back")
    assert (code, err) == (1, "")
    assert "pulled  training/a.pt" in out
    assert "c.json has 100001 bytes, too many for a manifest" in out


def test_a_record_holds_only_what_belongs_there(trained, url, tmp_path, cli_main):
    cli_main("push", trained, url)
    (run,) = Remote(url, timeout_s=1).folders()
    more = {"../evil.txt": "x", "/tmp/evil.txt": "x", "train.py": "x", ".hydra/../evil.yaml": "x"}
    reseal(place(url, run), "record/000001.json", lambda raw: raw["files"].update(more), "record/000002.json")
    out = cli_main("pull", url, tmp_path / "back").failed().out
    assert out.count("in its record: it is not written here") == 4
    assert not list(tmp_path.rglob("evil*"))
    assert not (tmp_path / "back" / "train.py").exists()
