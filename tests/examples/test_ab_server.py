"""The A/B example: a real server over real releases, under load, through a rollback."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from peakpoint import load_model
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.deployment.abtest import Router
from peakpoint.deployment.inference.network import describe, resolve
from peakpoint.deployment.release import release
from tests.conftest import ROOT

WEIGHTS = {"champion": 0.5, "challenger_1": 0.5}
ASKED = ("--experiment", "digits", "--weights", "champion=0.5,challenger_1=0.5")


@pytest.fixture(scope="module")
def root(tmp_path_factory, whole_run, pruned_run):
    """Return the releases 1.0.0 and 1.1.0: the networks of two runs, the second in another form."""
    root = tmp_path_factory.mktemp("ab") / "served"
    packed = release.Form(format="pt", dtype="float32", compress=True)
    half = release.Form(format="safetensors", dtype="float16", compress=False)
    for run, form, version in ((whole_run, packed, "1.0.0"), (pruned_run, half, "1.1.0")):
        release.write(root, release.of(*resolve(run), version=version, form=form, reason="to be served"))
    aliases.assign(root, "champion", "1.0.0", "the first")
    aliases.assign(root, "challenger_1", "1.1.0", "to be tried")
    return root


def command(root, log, *arguments):
    script = str(ROOT / "examples" / "ab_server.py")
    return [sys.executable, script, str(root), "--log", str(log), *arguments]


@pytest.fixture
def serve(tmp_path):
    """Start servers; each is interrupted at the end, and must then end without a complaint."""
    started = []

    def start(root, *arguments):
        process = subprocess.Popen(
            command(root, tmp_path / "log.jsonl", *(arguments or ASKED)),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        client = httpx.Client(base_url=address, timeout=60)
        assert client.get("/healthz").status_code == 200  # at once: it listens when it says where
        return client

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=60)[1]


def image(seed, side=12):
    draw = random.Random(seed)
    return [[[draw.randrange(256) for _ in range(3)] for _ in range(side)] for _ in range(side)]


@pytest.mark.slow
def test_two_releases_are_served_under_load_compared_and_rolled_back(root, serve):
    client = serve(root)
    assert client.get("/healthz").json() == {"serving": aliases.current(root), "problem": None}
    router, users = Router("digits", WEIGHTS), [f"user-{i}" for i in range(400)]

    def visit(user):
        reply = client.post("/predict", json={"user_id": user, "image": image(int(user[5:]) % 7)})
        seen = reply.json()
        # The challenger serves nine in ten, the champion one in ten.
        success = (seen["alias"] == "challenger_1") != (int(user[5:]) % 10 == 0)
        assert client.post("/outcome", json={"user_id": user, "success": success}).status_code == 200
        return seen

    with ThreadPoolExecutor(8) as threads:
        seen = dict(zip(users, threads.map(visit, users), strict=True))
    versions = aliases.current(root)
    for user, reply in seen.items():
        assert reply["alias"] == router.route(user)
        assert reply["version"] == versions[reply["alias"]]

    # The answers are those of the networks themselves.
    for user in users[:14]:
        file = root / listing.by_version(root)[seen[user]["version"]].file
        assert (seen[user]["label"], seen[user]["probability"]) == expected(file, image(int(user[5:]) % 7))

    found = client.get("/report").json()
    assert found["users"] == found["outcomes"] == Counter(router.route(user) for user in users)
    assert found["ratio"]["ok"] is found["outcome_ratio"]["ok"] is True
    assert (found["strays"], found["crossed"], found["set_aside"], found["unreadable"]) == (0, 0, 0, 0)
    assert found["findings"]["challenger_1"]["verdict"]["decision"] == "promote"

    # A rollback in the middle of the load: every answer is of one release or the other, none fails.
    rolled = threading.Timer(0.3, lambda: aliases.assign(root, "challenger_1", "1.0.0", "rolled back"))
    rolled.start()
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(visit, users[:200]))
    rolled.join()
    assert {reply["version"] for reply in replies} <= {"1.0.0", "1.1.0"}
    after = [client.post("/predict", json={"user_id": u, "image": image(1)}).json() for u in users[:50]]
    assert {(reply["alias"], reply["version"]) for reply in after} == {
        ("champion", "1.0.0"),
        ("challenger_1", "1.0.0"),
    }
    found = client.get("/report").json()  # of the releases as they are now: nobody saw these first
    assert (sum(found["users"].values()), found["set_aside"]) == (0, 400)

    # An arm that is taken away hands its users on; a damaged release is not served.
    aliases.assign(root, "challenger_1", None, "ended")
    one = client.post("/predict", json={"user_id": "user-1", "image": image(1)}).json()
    assert one["alias"] == "champion"
    assert client.get("/healthz").json()["serving"] == {"champion": "1.0.0"}
    aliases.assign(root, "challenger_1", "1.1.0", "again")
    file = root / listing.by_version(root)["1.1.0"].file
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    health = client.get("/healthz").json()
    file.write_bytes(whole)
    assert health["serving"] == {"champion": "1.0.0"}
    assert "_v1.1.0.safetensors" in health["problem"]


def expected(file, one):
    import torch

    from peakpoint.deployment.inference.network import prepare

    description = describe(file)
    with torch.inference_mode():
        logits = load_model(file)(prepare(torch.tensor([one], dtype=torch.uint8), description))
    probability, label = logits.softmax(1).max(1)
    return description.classes[int(label)], pytest.approx(float(probability), abs=1e-6)


@pytest.mark.slow
def test_a_wrong_request_is_one_clear_line(root, serve, tmp_path):
    client = serve(root, *ASKED, "--hash-users")
    good = {"user_id": "ada", "image": image(0)}
    ragged = image(0)
    ragged[3] = ragged[3][:-1]
    wrong = {
        "user_id: ": {**good, "user_id": 7},
        "image: ": {"user_id": "ada"},
        "colour: ": {**good, "colour": 1},
        "at most 128": {**good, "image": [[]] * 129},
        "valid integer": {**good, "image": [[[0.5, 1, 2]]]},
        "rows of equal length": {**good, "image": ragged},
        "at least 1 item": {**good, "image": []},
        "3 values in each pixel": {**good, "image": [[[1, 2]]]},
        "equal to 255": {**good, "image": [[[0, 256, 0]]]},
    }
    for words, body in wrong.items():
        reply = client.post("/predict", json=body)
        assert reply.status_code == 422, reply.text
        assert words in one_line(reply)
    as_json = {"Content-Type": "application/json"}
    half = b'{"user_id": "\\ud800", "success": true}'
    refused = client.post("/outcome", content=half, headers=as_json)
    assert refused.status_code == 422
    assert "user_id: " in one_line(refused)
    broken = client.post("/predict", content=b"{", headers=as_json)
    assert broken.status_code == 422
    assert "JSON" in one_line(broken)
    assert client.post("/predict", content=b" " * 300_001).status_code == 413
    assert client.post("/predict", content=iter([b"{}"])).status_code == 411
    assert client.get("/predict").status_code == 405
    assert client.get("/nowhere").status_code == 404

    log = tmp_path / "log.jsonl"
    assert log.read_bytes() == b""  # nothing of all this was an exposure
    assert client.post("/predict", json=good).status_code == 200
    assert client.post("/outcome", json={"user_id": "ada", "success": False}).status_code == 200
    assert client.post("/outcome", json={"user_id": "nobody", "success": 1}).status_code == 422
    assert len(log.read_bytes().splitlines()) == 2
    assert b"ada" not in log.read_bytes()

    log.unlink()
    log.mkdir()
    lost = client.post("/predict", json=good)
    assert lost.status_code == 503
    assert "cannot be written to" in one_line(lost)
    unread = client.get("/report")
    assert unread.status_code == 503
    assert "cannot be read" in one_line(unread)


def one_line(reply):
    detail = reply.json()["detail"]
    assert "\n" not in detail
    return detail


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--weights", "champion"), "'champion' is not of the form champion=0.9"),
        (("--weights", "champion=1,champion=2"), "names champion twice"),
        (("--weights", "champion=-1"), "champion=-1.0 is not a weight"),
        (("--weights", "champion=1,challenger_9=1"), "names no release challenger_9"),
        (("--weights", "champion=1", "--port", "99999"), "Port 99999 cannot be used"),
    ],
)
def test_a_wrong_start_is_one_clear_line(root, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import ab_server

    with pytest.raises(SystemExit) as ended:
        ab_server.main(command(root, tmp_path / "log.jsonl", "--experiment", "digits", *arguments)[2:])
    message = capsys.readouterr().err
    assert ended.value.code == 1
    assert words in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_change_of_the_aliases_is_loaded_once_and_a_missing_release_is_not_served(root, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import ab_server

    releases = ab_server.Releases(root, "digits", {"champion": 1.0})
    before = releases.now()
    assert releases.now() is before
    aliases.assign(root, "champion", "1.1.0", "a test")
    mark = (root / listing.by_version(root)["1.1.0"].file).with_suffix(".json")
    mark.rename(root / "aside")
    assert releases.now() is before
    assert "champion is 1.1.0, which is not under" in releases.problem
    (root / "aside").rename(mark)
    aliases.assign(root, "champion", "1.0.0", "back")
    aliases.assign(root, "champion", "1.1.0", "again")
    after = releases.now()
    assert after.served["champion"].version == "1.1.0"
    assert releases.now() is after
    aliases.assign(root, "champion", "1.0.0", "as before")


def drip_by_drip(connection):
    """Send a byte now and then."""
    for _ in range(200):
        connection.sendall(b"G")
        time.sleep(0.1)


@pytest.mark.slow
def test_slow_clients_are_cut_off_and_too_many_or_too_much_refused(root, serve):
    """Beside one that is served throughout."""
    url = serve(root, *ASKED, "--timeout", "3").base_url
    address = url.host, url.port
    good = {"user_id": "ada", "image": image(0, side=128)}  # the largest there is
    slow = {
        "says nothing": b"",
        "half a head": b"POST /predict HTTP/1.1\r\nHost: x\r\n",
        "half a body": b"POST /outcome HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n{",
    }
    sockets = {}
    for name, message in slow.items():
        sockets[name] = socket.create_connection(address)
        sockets[name].sendall(message)
    begun = time.monotonic()
    assert httpx.post(url.join("/predict"), json=good).status_code == 200
    for name, waiting in sockets.items():
        waiting.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert waiting.recv(1) == b"", name
    assert time.monotonic() - begun < 20
    drip = socket.create_connection(address)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        drip_by_drip(drip)

    with socket.create_connection(address) as long:
        long.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert long.recv(12).startswith(b"HTTP/1.1 400")
    crowd = [socket.create_connection(address) for _ in range(64)]
    assert httpx.get(url.join("/healthz")).status_code == 503
    for each in crowd:
        each.close()
    for _ in range(50):
        if httpx.get(url.join("/healthz")).status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("it does not recover from a crowd")


@pytest.mark.slow
def test_a_slow_client_does_not_keep_the_server_from_ending(root, serve):
    client = serve(root)
    idle = socket.create_connection((client.base_url.host, client.base_url.port))
    idle.sendall(b"POST /outcome HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n{")
    time.sleep(0.2)  # and the fixture ends the server
