"""The remote place as one sees it through fsspec: on S3, in a folder, in memory, and over a bad network."""

import importlib
import sys
import uuid

import pytest

from peakpoint.base.digests import BLAKE3, of_bytes
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.remote import bounded_call
from peakpoint.checkpointing.remote.client import Missing, Remote, RemoteError
from peakpoint.checkpointing.remote.urls import check_url, refuse_passwords, shown
from tests.conftest import one_line
from tests.remotes import Fault

DATA = bytes(range(256)) * 300
DIGEST = of_bytes(DATA, BLAKE3)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


def remote(url: str, attempts: int = 1, timeout_s: float = 10) -> Remote:
    return Remote(url, timeout_s=timeout_s, attempts=attempts)


@pytest.fixture(params=["s3", "file", "memory"])
def place(request, tmp_path):
    if request.param == "s3":
        return remote(request.getfixturevalue("s3").url + "/some/where")
    return remote(f"file://{tmp_path}/far" if request.param == "file" else f"memory://{uuid.uuid4().hex}")


def test_what_is_put_is_there_and_what_is_deleted_is_not(place, file):
    assert place.find() == {}
    assert place.folders() == []
    place.upload("a/b.pt", file, DIGEST, len(DATA))
    place.write("a/b.json", b"{}")
    place.copy("a/b.pt", "a/c.pt")
    assert place.find() == {"a/b.pt": len(DATA), "a/b.json": 2, "a/c.pt": len(DATA)}
    assert place.find("a") == {"b.pt": len(DATA), "b.json": 2, "c.pt": len(DATA)}
    assert place.folders() == ["a"]
    assert place.read("a/b.json") == b"{}"
    assert b"".join(place.chunks("a/c.pt", 100, len(DATA))) == DATA[100:]
    place.delete("a/b.pt")
    place.delete("a/b.pt")
    assert set(place.find("a")) == {"b.json", "c.pt"}
    with pytest.raises(Missing, match=r"no such (object|file)"):
        place.read("a/b.pt")


def test_nothing_is_read_beyond_its_limit(place):
    place.write("large", b"x" * 1001)
    assert len(place.read("large", 1001)) == 1001
    with pytest.raises(RemoteError, match="more than 1000 bytes"):
        place.read("large", 1000)


def test_another_size_and_other_bytes_are_seen(place, file):
    place.write("short", DATA[:-1])
    with pytest.raises(RemoteError, match="has 76799 bytes there and 76800 here"):
        place.verify("short", DIGEST, len(DATA))
    place.write("other", DATA[:-1] + b"?")
    with pytest.raises(RemoteError, match="reads differently"):
        place.verify("other", DIGEST, len(DATA))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("drop", b"PUT"),
        ("reset", b"PUT"),
        ("busy", b"PUT"),
        ("hang", b"PUT"),
        ("hang", b"GET"),
        ("reset", b"GET"),
        ("truncate", b"GET"),
        ("lie", b"GET"),
        ("spoil", b"PUT"),
    ],
)
def test_a_bad_network_is_an_error_and_never_a_success(s3, file, kind, what):
    s3.proxy.faults = [Fault(kind, what, times=10**6)]
    place = remote(s3.url, timeout_s=1 if kind == "hang" else 10)
    with one_line(RemoteError):
        place.upload("x.pt", file, DIGEST, len(DATA))
    assert s3.proxy.faults[0].times < 10**6
    s3.proxy.faults = []
    remote(s3.url).upload("x.pt", file, DIGEST, len(DATA))
    assert s3.get("x.pt") == DATA


@pytest.mark.parametrize("kind", ["drop", "delay", "reset", "busy", "truncate"])
def test_a_fault_that_passes_is_got_over(s3, file, kind):
    s3.proxy.faults = [Fault(kind, times=1)]
    remote(s3.url, attempts=3).upload("x.pt", file, DIGEST, len(DATA))
    assert s3.get("x.pt") == DATA
    assert s3.proxy.faults[0].times == 0


def test_no_answer_is_larger_than_what_was_asked_for(s3):
    place = remote(s3.url)
    s3.put("x", DATA)
    s3.proxy.faults = [Fault("whole", b"GET", times=10)]
    with pytest.raises(RemoteError, match="10 bytes were asked for and 76800 came"):
        list(place.chunks("x", 0, 10))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("bucket/folder", "not a URL such as s3://bucket/folder"),
        ("s3://", "not a URL"),
        ("s3:///", "not a URL"),
        ("simplecache::s3://bucket/x", "not a URL"),
        ("s3://bucket/x y", "not a URL"),
        ("foo://bucket/x", "fsspec knows no protocol foo"),
        ("ftp://me:hunter22@host/x", "holds a password"),
        ("s3://me:abcdef/hunter22@bucket/x", "holds a password"),
        ("https://host/x?signature=abcdef", "not a URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_reaching_for_it(url, says):
    with pytest.raises(CheckpointError, match=says) as caught:
        check_url(url, "checkpoint.mirror.url")
    assert str(caught.value).startswith("checkpoint.mirror.url=")
    assert "hunter22" not in str(caught.value)
    assert "abcdef" not in str(caught.value)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(CheckpointError, match=r'pip install "peakpoint\[s3\]"'):
        check_url("s3://bucket/x")


@pytest.mark.parametrize("url", ["file:///a:b/x", "sftp://me@host:22/a@b", "memory://host:22/a@b"])
def test_a_user_or_a_port_is_no_password(url):
    refuse_passwords([url])


def test_no_secret_is_shown(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    text = "sftp://me:pw@host/x wJalrXUtnFEMI https://h/x?sig=1\nnext"
    assert shown(text) == "sftp://***@host/x *** https://h/x?*** next"


def test_a_bucket_that_is_not_there_is_one_line(s3, file):
    with pytest.raises(Missing, match="could not be written: there is no such object, or no such bucket"):
        remote("s3://no-such-bucket-here/x").upload("x.pt", file, DIGEST, len(DATA))


@pytest.mark.parametrize("kind", ["none", "reset", "busy", "lie", "hang"])
def test_a_large_file_goes_in_parts_and_arrives_whole_or_not_at_all(s3, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(bounded_call, "SLOWEST", 10**7)
    data = bytes(range(251)) * 80_000  # three parts
    path = tmp_path / "large"
    path.write_bytes(data)
    place = remote(s3.url, timeout_s=1 if kind == "hang" else 10)
    digest = of_bytes(data, BLAKE3)
    s3.proxy.faults = [Fault(kind, b"partNumber=2", 99)]
    if kind in ("none", "lie"):  # there is nothing in the answer to a part that could lie
        place.upload("x.pt", path, digest, len(data))
        assert len(s3.proxy.lines(b"partNumber=")) == 3
    else:
        with pytest.raises(RemoteError):
            place.upload("x.pt", path, digest, len(data))
        assert "x.pt" not in s3.names()
        s3.proxy.faults = []
        remote(s3.url).upload("x.pt", path, digest, len(data))
    assert s3.get("x.pt") == data
