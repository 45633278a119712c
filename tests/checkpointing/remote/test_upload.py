"""What arrives in a mirror, in which order, what stays there, and what is left alone."""

import json
import uuid

import pytest

from peakpoint.checkpointing.remote import layout, upload
from peakpoint.checkpointing.remote.layout import newest_record
from peakpoint.checkpointing.storage.manifest import unsealed
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import manifest, saved
from tests.checkpointing.remote.mirror_cases import World
from tests.remotes import Fault


def puts(s3):
    """What was written, in order, without the run's folder."""
    return [line.split()[1].decode().split("/runs/run/")[1] for line in s3.proxy.lines(b"PUT")]


def test_bytes_go_first_then_the_manifest_then_the_pointer(away, s3):
    kept = away.save()
    away.copy()
    assert puts(s3) == [
        "mirror.json",
        "record/000001.json",
        "checkpoints/milestone/best_1.pt",
        "checkpoints/milestone/best_1.json",
        "pointers/latest.json",
        "pointers/milestone/best.json",
    ]
    assert s3.get("runs/run/checkpoints/milestone/best_1.pt") == away.store.path(kept).read_bytes()
    manifest = away.store.path(kept).with_suffix(".json")
    assert s3.get("runs/run/checkpoints/milestone/best_1.json") == manifest.read_bytes()
    pointer = unsealed(s3.get("runs/run/pointers/milestone/best.json"))
    assert (pointer["file"], pointer["digest"]) == ("checkpoints/milestone/best_1.pt", kept.digest)


@pytest.mark.parametrize("kind", ["lie", "truncate", "reset", "drop", "hang"])
def test_what_cannot_be_read_back_gets_no_manifest_and_no_pointer(away, s3, kind):
    first = away.save()
    away.copy()
    s3.proxy.faults = [
        Fault(kind, b"GET /" + s3.bucket.encode() + b"/runs/run/checkpoints/milestone/best_2.pt", 99)
    ]
    away.save()
    away.fail(timeout_s=1 if kind == "hang" else 10)
    assert away.there() == [first.file]
    assert unsealed(s3.get("runs/run/pointers/latest.json"))["digest"] == first.digest
    s3.proxy.faults = []
    away.copy(keep=None)
    assert away.there() == ["milestone/best_1.pt", "milestone/best_2.pt"]


def test_after_a_restart_only_what_is_missing_is_copied(away, s3):
    away.save()
    away.copy()
    s3.proxy.seen.clear()
    away.save()
    away.copy()
    assert [key for key in puts(s3) if key.endswith(".pt")] == ["checkpoints/milestone/best_2.pt"]
    s3.proxy.seen.clear()
    away.copy()
    assert [key for key in puts(s3) if "pointers" not in key] == []


def test_bytes_left_without_a_manifest_are_copied_again_or_swept(away, s3):
    away.save()
    s3.put("runs/run/checkpoints/milestone/best_1.pt", b"half")
    s3.put("runs/run/checkpoints/milestone/gone.pt", b"half")
    away.copy()
    assert away.there() == ["milestone/best_1.pt"]
    assert not any("gone.pt" in key for key in s3.names())


def test_what_only_could_not_be_read_is_not_swept(away, s3):
    gone = away.save()
    away.copy()
    away.store.delete(gone)
    s3.proxy.faults = [Fault("lie", b"best_1.json", 99)]
    made = away.mirror()
    made._pass()
    assert not made._there.index
    s3.proxy.faults = []
    assert away.there() == [gone.file]


def test_what_a_list_left_out_is_not_swept(far):
    gone = far.save()
    far.copy()
    far.store.delete(gone)
    place = upload.RemoteRun(far.remote(), far.run)
    place.open("run")
    place.index.clear()
    del place._sizes["milestone/best_1.json"]
    place.sweep(set())
    assert far.there() == [gone.file]


def test_roles_that_share_their_bytes_are_sent_once(away, s3):
    one = away.save()
    away.copy()
    away.store.share(one, manifest("milestone/other.pt", tags=("other",)))
    place = upload.RemoteRun(away.remote(), "run")
    place.open("run")
    s3.proxy.sent = 0
    assert one.bytes > 1000
    path, key = away.store.path(one), "checkpoints/milestone/other.pt"
    place._put_file(key, path, one.digest, one.bytes, one.file)
    by_copy, s3.proxy.sent = s3.proxy.sent, 0
    place._put_file(key, path, one.digest, one.bytes)
    assert by_copy < s3.proxy.sent - 500
    away.copy()
    assert away.there() == ["milestone/best_1.pt", "milestone/other.pt"]
    assert s3.get("runs/run/checkpoints/milestone/other.pt") == away.store.path(one).read_bytes()


def test_the_newest_of_each_role_stay_and_older_ones_go(far):
    for _ in range(4):
        gone = far.save()
        far.save(tag="other")
        far.copy()
        far.store.delete(gone)
    assert far.there() == [
        "milestone/other_2.pt",
        *(f"milestone/other_{n}.pt" for n in (4, 6)),
        "milestone/best_7.pt",
        "milestone/other_8.pt",
    ]


@pytest.mark.parametrize(("keep", "goes_here"), [(None, True), (1, False)])
def test_keep_null_lets_nothing_go_and_what_is_here_stays_there(far, keep, goes_here):
    for _ in range(3):
        done = far.save()
        far.copy(keep=keep)
        if goes_here:
            far.store.delete(done)
    assert len(far.there()) == 3


def test_nothing_is_deleted_when_what_came_after_it_is_not_there(far):
    first = far.save()
    far.copy()
    far.store.delete(first)
    second = far.save()
    place = upload.RemoteRun(far.remote(), far.run)
    place.open("run")
    place.put(far.root, second)
    place.remote.delete(f"checkpoints/{second.file}")
    assert place.delete_older({second.file}, 1) == []
    place.put(far.root, second)
    assert place.delete_older({second.file}, 1) == [first.file]


def test_two_runs_with_one_url_do_not_touch_each_other(tmp_path):
    url = f"memory://{uuid.uuid4().hex}"
    a, b = (World(tmp_path / name, url, run=name) for name in "ab")
    for _ in range(2):
        for each in (a, b):
            gone = each.save()
            each.copy()
            each.store.delete(gone)
    assert a.there() == b.there() == ["milestone/best_2.pt"]
    assert a.remote().folders() == ["a", "b"]


def test_of_two_runs_in_one_folder_each_has_its_own_mirror(far):
    other = World(far.root.parent, far.url, run="other")
    mine, theirs = far.save("mine"), other.save("theirs")
    far.copy()
    assert far.there() == [mine.file]
    other.copy()
    assert other.there() == [theirs.file]


def test_a_file_that_retention_deletes_is_read_to_its_end(far):
    kept = far.save()
    path = far.store.path(kept)
    data = path.read_bytes()
    with upload.hard_link(path) as link:
        far.store.delete(kept)
        Store(far.root, "run")  # sweeps what dead writers left
        assert link.read_bytes() == data
    assert list((far.root / "milestone").iterdir()) == []


def test_a_newer_file_of_the_same_name_takes_its_place_and_an_older_does_not(far, warnings):
    old = far.save("peak")
    far.copy()
    far.store.delete(old)
    new = far.save("peak")
    far.copy()
    place = far.remote().below("run")
    assert place.read("checkpoints/milestone/peak.pt") == far.store.path(new).read_bytes()
    assert warnings() == []
    # Another machine, with an earlier state of the same run.
    other = World(far.root.parent.parent / "other", far.url)
    other.save("peak")
    other.copy()
    assert place.read("checkpoints/milestone/peak.pt") == far.store.path(new).read_bytes()
    assert any("holds another milestone/peak.pt, which is not older" in line for line in warnings())


def test_another_role_of_what_is_left_alone_is_copied(far):
    for name in ("first", "second", "peak"):
        newest = far.save(name)
    far.copy()
    other = World(far.root.parent.parent / "other", far.url)
    mine = other.save("role", tag="role")
    other.store.share(mine, manifest("milestone/peak.pt"))
    other.copy()  # peak first: it is the newer one, and not newer than what is there
    assert "milestone/role.pt" in far.there()
    place = far.remote().below("run")
    assert place.read("checkpoints/milestone/peak.pt") == far.store.path(newest).read_bytes()


def test_the_record_is_of_one_moment_and_the_newest_sound_one_counts(far):
    run = far.root.parent
    (run / ".hydra").mkdir()
    (run / ".hydra" / "config.yaml").write_text("seed: 1\n")
    for number in range(3):
        (run / "run.json").write_text(json.dumps({"run": "run", "number": number}))
        far.save()
        far.copy()
    place = far.remote().below("run")
    assert set(place.find("record")) == {"000002.json", "000003.json"}
    number, texts = newest_record(place)
    assert number == 3
    assert json.loads(texts["run.json"])["number"] == 2
    assert texts[".hydra/config.yaml"] == "seed: 1\n"
    assert "best_3.pt" in texts["checkpoints/metadata/journal.jsonl"]
    place.write("record/000003.json", place.read("record/000003.json").replace(b"seed: 1", b"seed: 2"))
    number, texts = newest_record(place)
    assert number == 3
    assert json.loads(texts["run.json"])["number"] == 1


def test_a_record_that_could_not_be_read_again_is_not_uploaded(far, monkeypatch, caplog):
    log = far.root.parent / "metrics.jsonl"
    log.write_text("{}\n")
    far.save()
    far.copy()
    for module in (upload, layout):
        monkeypatch.setattr(module, "SMALL", 10_000)
    for _ in range(2):
        log.write_text(log.read_text() + "{}\n" * 4000)
        far.save()
        far.copy()
    assert len(far.there()) == 3
    place = far.remote().below("run")
    assert newest_record(place)[1]["metrics.jsonl"] == "{}\n"
    assert "The record of the run is not uploaded" in caplog.text
    assert "passed over" not in caplog.text


def test_a_record_that_is_too_large_is_passed_over_aloud(far, monkeypatch, caplog):
    far.save()
    far.copy()
    place = far.remote().below("run")
    place.write("record/000009.json", b" " * 10_001)
    monkeypatch.setattr(layout, "SMALL", 10_000)
    number, texts = newest_record(place)
    assert number == 9
    assert texts
    assert "000009.json is passed over: it has 10.0 kB, and a record 10.0 kB at most." in caplog.text


def test_the_record_is_not_sent_again_for_what_is_not_copied(away, s3):
    away.save()
    made = away.mirror()
    made._pass()
    saved(away.store, "training/a.pt")
    s3.proxy.seen.clear()
    made._pass()
    assert puts(s3) == []
    away.save()
    made._pass()
    assert "record/000002.json" in puts(s3)


def test_only_what_is_named_is_copied(far):
    saved(far.store, "training/a.pt", tags=("interval",), policies=("interval",))
    far.save(tag="best", policies=("best",))
    far.save(tag="top_k", policies=("top_k",))
    far.copy(what={"top_k"})
    assert far.there() == ["milestone/top_k_2.pt"]
    far.copy(what={"interval", "best"})
    assert set(far.there()) == {"milestone/top_k_2.pt", "training/a.pt", "milestone/best_1.pt"}
