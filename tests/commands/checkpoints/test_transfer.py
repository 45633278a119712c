"""push and pull: a run goes to a remote place and comes back, whole, though what is between them is bad."""

import json
import shutil
import uuid

import pytest

from peakpoint.checkpointing.remote import download, upload
from peakpoint.checkpointing.storage import aliases, listing, locate
from peakpoint.checkpointing.storage.store import Store
from peakpoint.deployment.release import release
from tests.checkpointing.checkpoint_cases import damage, saved
from tests.checkpointing.publish_cases import SAFE, files, journaled, small, sound
from tests.commands.checkpoints.remote_cases import contents, flip, place


def test_a_run_goes_and_comes_back(trained, url, tmp_path, cli_main):
    out = cli_main("push", trained, url, "--what", "milestone,training").output()
    number = len(listing.manifests(trained / "checkpoints"))
    assert f"{number} copied, 0 were there, 0 refused, in {url}/" in out
    assert cli_main("push", trained, url, "--what", "milestone,training")[1].startswith("0 copied")
    assert f"{number} copied, 0 were here, 0 refused" in cli_main("pull", url, tmp_path / "back").output()
    back, here = contents(tmp_path / "back"), contents(trained)
    assert {name: here[name] for name in back if name not in ("mirror.json", ".lock")} == {
        name: data for name, data in back.items() if name not in ("mirror.json", ".lock")
    }
    assert {"run.json", "metrics.jsonl", ".hydra/config.yaml", "checkpoints/metadata/journal.jsonl"} < set(
        back
    )
    assert cli_main("verify", tmp_path / "back")[0] == 0
    for pointer in (trained / "checkpoints").rglob("*.pt"):
        if pointer.is_symlink():
            twin = tmp_path / "back" / pointer.relative_to(trained)
            assert twin.readlink() == pointer.readlink()
    assert cli_main("pull", url, tmp_path / "back")[1].count("here  ") == number


def test_without_a_word_what_the_mirror_would_copy_is_pushed(trained, url, cli_main):
    _, out, _ = cli_main("push", trained, url, "--json")
    assert {file.split("/")[0] for file in json.loads(out)["copied"]} == {"milestone"}


def test_push_verify_repairs_what_is_damaged_there(run, url, cli_main, pushed):
    whole = flip(pushed, "checkpoints/training/a.pt")
    assert cli_main("push", run, url, "--what", "training")[1].startswith("0 copied, 2 were there")
    out = cli_main("push", run, url, "--what", "training", "--verify").succeeded().out
    assert out.splitlines()[0].split(",")[0] == "pushed  training/a.pt"
    assert pushed.read("checkpoints/training/a.pt") == whole


def test_what_says_whose_folder_it_is_or_what_is_there_is_repaired(run, url, cli_main, pushed):
    before = {key: pushed.read(key) for key in ("mirror.json", "checkpoints/training/a.json")}
    for key, text in before.items():
        pushed.write(key, text.replace(b'"run": "run"', b'"run": "ran"'))
    assert "1 copied, 1 were there" in cli_main("push", run, url, "--what", "training").succeeded().out
    assert {key: pushed.read(key) for key in before} == before


def test_one_file_by_its_name_or_its_role(trained, url, tmp_path, cli_main):
    cli_main("push", trained, url, "--what", "milestone,training")
    run = listing.in_tier(trained / "checkpoints", "milestone")[0].run
    newest = listing.manifests(trained / "checkpoints")[-1]
    _, out, _ = cli_main("pull", f"{url}/{run}/checkpoints/training/latest.pt", tmp_path / "a", "--json")
    assert json.loads(out)["copied"] == [newest.file]
    cli_main("pull", f"{url}/{run}/checkpoints/{newest.file}", tmp_path / "b").succeeded()
    assert locate.locate(tmp_path / "b" / "checkpoints" / newest.file)[1].digest == newest.digest
    _, out, _ = cli_main("pull", f"{url}/{run}/checkpoints/milestone/best_loss.pt", tmp_path / "c", "--json")
    (file,) = json.loads(out)["copied"]
    assert file.startswith("milestone/best_loss_")
    err = cli_main("pull", f"{url}/{run}/checkpoints/milestone/nothing.pt", tmp_path / "d").refusal()
    assert "holds no milestone/nothing.pt" in err


def test_the_newest_alone_and_where_it_is_damaged_the_one_before(url, tmp_path, cli_main, pushed):
    _, out, _ = cli_main("pull", url, tmp_path / "sound", "--newest", "--json")
    assert json.loads(out)["copied"] == ["training/b.pt"]
    first, second = (f"checkpoints/training/{name}.pt" for name in "ab")
    flip(pushed, second)
    code, out, err = cli_main("pull", url, tmp_path / "back", "--newest")
    assert (code, err) == (1, "")
    assert "pulled  training/a.pt" in out
    assert "b.pt does not match its digest: it is damaged there" in out
    assert not (tmp_path / "back" / second).exists()
    flip(pushed, first)
    err = cli_main("pull", url, tmp_path / "none", "--newest").refusal()
    assert "holds no checkpoint that is sound" in err


def test_what_goes_there_meanwhile_is_passed_over(url, tmp_path, cli_main, pushed, monkeypatch):
    read = download.read_index

    def then_it_goes(far, sizes):
        index = read(far, sizes)
        far.delete("checkpoints/training/b.json")
        far.delete("checkpoints/training/b.pt")
        return index

    monkeypatch.setattr(download, "read_index", then_it_goes)
    code, out, err = cli_main("pull", url, tmp_path / "back")
    assert (code, err) == (1, "")
    assert "b.json could not be read: there is no such object" in out
    assert "pulled  training/a.pt" in out


def test_releases_travel_with_all_that_belongs_to_them(url, tmp_path, cli_main):
    root = tmp_path / "prod"
    root.mkdir()
    for version, form in (("1.0.0", {}), ("1.1.0", {"form": SAFE, "seed": 1})):
        manifest = release.write(root, small(version, **form))
        (root / manifest.file).with_suffix(".json.sig").write_text(f"a signature of {version}")
    aliases.assign(root, "champion", "1.0.0", "a test")
    cli_main("changelog", root)
    assert cli_main("push", root, url)[0] == 0
    cli_main("pull", url, tmp_path / "back").output()
    back = tmp_path / "back" / "checkpoints"
    assert contents(back) == contents(root)
    assert cli_main("verify", "--golden", back)[0] == 0
    assert sound(back) == sound(root)
    assert journaled(back) == journaled(root)
    assert aliases.current(back) == {"champion": "1.0.0"}
    for name in ("champion.pt", "latest.safetensors"):
        link = root / "production" / name
        assert (back / "production" / name).readlink() == link.readlink()


def test_a_release_goes_on_to_be_pulled_when_the_journal_has_grown(url, tmp_path, cli_main, prod):
    cli_main("pull", url, tmp_path / "back")
    release.write(prod, small("1.1.0", seed=1))
    aliases.assign(prod, "champion", "1.1.0", "a test")
    cli_main("push", prod, url)
    assert cli_main("pull", url, tmp_path / "back")[0] == 0
    assert aliases.current(tmp_path / "back" / "checkpoints") == {"champion": "1.1.0"}


@pytest.mark.parametrize("number", range(5))
def test_a_release_with_any_file_damaged_there_does_not_arrive(url, tmp_path, cli_main, prod, number):
    victims = [p for p in files(prod, "1.0.0") if p.suffix != ".sig"]
    flip(place(url, "prod"), f"checkpoints/{victims[number].relative_to(prod).as_posix()}")
    assert "holds no checkpoint that is sound" in cli_main("pull", url, tmp_path / "back").refusal()
    assert listing.releases(tmp_path / "back" / "checkpoints") == []


@pytest.mark.usefixtures("prod")
def test_a_release_that_another_bears_the_name_of_is_not_touched(url, tmp_path, cli_main):
    (tmp_path / "b" / "prod").mkdir(parents=True)
    release.write(tmp_path / "b" / "prod", small("1.0.0", seed=1))
    before = place(url, "prod").read("checkpoints/production/lenet5_v1.0.0.pt")
    assert "refused" in cli_main("push", tmp_path / "b" / "prod", url).failed().out
    assert place(url, "prod").read("checkpoints/production/lenet5_v1.0.0.pt") == before


def test_a_directory_that_has_gone_on_keeps_its_record(trained, url, tmp_path, cli_main):
    cli_main("push", trained, url)
    cli_main("pull", url, tmp_path / "back")
    back = tmp_path / "back"
    for run, line in ((trained, "there"), (back, "here")):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(f'{{"kind": "{line}"}}\n')
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "gone_on": line}))
    cli_main("push", trained, url)
    before = contents(back)
    assert cli_main("pull", url, back)[0] == 0
    assert contents(back) == before
    (back / "metrics.jsonl").write_text("")  # as if it had not
    assert cli_main("pull", url, back)[0] == 0
    assert json.loads((back / "run.json").read_text())["gone_on"] == "there"
    assert (back / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


@pytest.mark.usefixtures("pushed")
def test_what_is_here_is_never_written_over(url, tmp_path, cli_main):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    err = cli_main("pull", url, tmp_path / "mine").failed().err
    assert err == f"error: {tmp_path / 'mine'} is not empty, and not of this run: name a new directory.\n"
    assert cli_main("pull", url, tmp_path / "back")[0] == 0
    file = tmp_path / "back" / "checkpoints" / "training" / "a.pt"
    damage(file)
    before = file.read_bytes()
    out = cli_main("pull", url, tmp_path / "back").failed().out
    assert "a.pt does not match the digest in its manifest" in out
    assert file.read_bytes() == before


def test_a_place_with_several_runs_asks_which(tmp_path, url, cli_main):
    for name in ("one", "two"):
        saved(Store(tmp_path / name / "checkpoints", name), "training/a.pt")
        cli_main("push", tmp_path / name, url, "--what", "training")
    err = cli_main("pull", url, tmp_path / "back").failed().err
    assert err == f"error: {url} holds 2 runs: add one of them to the URL: one (one), two (two).\n"
    assert cli_main("pull", f"{url}/two", tmp_path / "back")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("push", "nowhere", "memory://x"), "nowhere does not exist"),
        (("push", "run", "memory://x", "--what", "training,mileston"), "--what mileston names nothing of "),
        (("push", "run", "nowhere"), "not a URL such as s3://bucket/folder"),
        (("push", "run", "foo://x"), "fsspec knows no protocol foo"),
        (("pull", "foo://x", "back"), "fsspec knows no protocol foo"),
        (("pull", "memory://nothing-here", "back"), "holds no copies of a run"),
        (("push", "run", "ftp://me:hunter22@h/x"), "holds a password"),
        (("ls", "run", "ftp://me:hunter22@h/x"), "holds a password"),
    ],
)
def test_wrong_words_are_one_line(run, cli_main, monkeypatch, arguments, says):
    monkeypatch.chdir(run.parent)
    code, out, err = cli_main(*arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err
    assert "hunter22" not in err


@pytest.mark.usefixtures("pushed")
def test_what_came_back_can_be_pushed_on(run, url, tmp_path, cli_main):
    """The copy is as good as the original."""
    cli_main("pull", url, tmp_path / "back")
    shutil.rmtree(run)
    other = f"memory://{uuid.uuid4().hex}"
    assert cli_main("push", tmp_path / "back", other, "--what", "training")[0] == 0
    assert cli_main("pull", other, tmp_path / "again")[0] == 0
    assert cli_main("verify", tmp_path / "again")[0] == 0
    assert upload.read_mark(place(other))["run"] == "run"


def test_a_folder_of_this_machine_is_looked_at_first(run, tmp_path, cli_main, url, pushed):
    before = contents(tmp_path)
    inside, file = run / "checkpoints" / "training" / "copy", run / "checkpoints" / "training" / "a.pt"
    for arguments, words in (
        (("push", run, f"file://{inside}"), "lies among the checkpoints under"),
        (("push", run, f"file://{run / 'checkpoints'}"), "lies among the checkpoints under"),
        (("push", run, f"file://{run}/mirror"), "lie one within the other"),
        (("push", run, f"file://{tmp_path}"), "lie one within the other"),
        (("pull", url, inside), "lies among the checkpoints under"),
        (("push", run, f"file://{file}"), "is a file: name a folder."),
    ):
        assert words in cli_main(*arguments).refusal()
    assert contents(tmp_path) == before


def test_a_run_is_not_pulled_into_or_around_its_mirror(run, tmp_path, cli_main):
    far = tmp_path / "far"
    assert cli_main("push", run, f"file://{far}")[0] == 0
    before = contents(tmp_path)
    for directory in (far / "run" / "back", tmp_path):
        err = cli_main("pull", f"file://{far}", directory).refusal()
        assert "lie one within the other: choose another place" in err
    assert contents(tmp_path) == before
