"""Signatures: with the real ssh-keygen and keys made here."""

import shutil
import subprocess
from pathlib import Path

import pytest

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.release import signing
from tests.conftest import one_line

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


def make_key(path: Path) -> Path:
    """Make an SSH key without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path), "-C", "x"], check=True)
    return path


def allow(path: Path, *keys: tuple[str, Path], options: str = "") -> Path:
    """Write a list of allowed signers."""
    lines = [f"{name} {options} {key.with_suffix('.pub').read_text()}" for name, key in keys]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def key(tmp_path):
    return make_key(tmp_path / "key")


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "a_v1.0.0.json"
    path.write_text('{"sha256": "abc"}\n')
    return path


def refusal(check, *arguments):
    with one_line(CheckpointError) as refused:
        check(*arguments)
    return str(refused.value)


def test_a_signature_names_its_signer(manifest, key, tmp_path):
    other = make_key(tmp_path / "other")
    allowed = allow(tmp_path / "allowed", ("ci@lab", other), ("ada@lab,ada", key))
    assert signing.sign(manifest, key) == tmp_path / "a_v1.0.0.json.sig"
    assert signing.signer(manifest, allowed) == "ada@lab"
    assert list(tmp_path.glob(".staged-*")) == []


def test_what_is_not_signed_as_it_must_be_is_refused(manifest, key, tmp_path):
    allowed = allow(tmp_path / "allowed", ("ada@lab", key))
    assert "is not signed" in refusal(signing.signer, manifest, allowed)
    signing.sign(manifest, key)
    manifest.write_text('{"sha256": "abd"}\n')
    assert "was changed after it was signed" in refusal(signing.signer, manifest, allowed)
    signing.sign(manifest, key)
    stranger = allow(tmp_path / "strangers", ("eve@lab", make_key(tmp_path / "eve")))
    assert refusal(signing.signer, manifest, stranger).endswith(f"a key that {stranger} does not list.")
    public = tmp_path / "eve.pub"  # no list
    assert f"{public}:1: " in refusal(signing.signer, manifest, public)
    signing.signature_of(manifest).write_text("not a signature")
    assert str(manifest) in refusal(signing.signer, manifest, allowed)
    assert "is not a file: name a list of allowed signers" in refusal(
        signing.signer, manifest, tmp_path / "nothing"
    )


@pytest.mark.parametrize("namespace", [signing.NAMESPACE, "git"])
def test_a_signature_of_ssh_keygen_counts_if_it_was_made_for_releases(manifest, key, tmp_path, namespace):
    allowed = allow(tmp_path / "allowed", ("ada@lab", key))
    arguments = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace, str(manifest)]
    subprocess.run(arguments, check=True, capture_output=True)
    if namespace == signing.NAMESPACE:
        assert signing.signer(manifest, allowed) == "ada@lab"
        only_git = allow(tmp_path / "git", ("ada@lab", key), options='namespaces="git"')
        assert str(manifest) in refusal(signing.signer, manifest, only_git)
    else:
        assert "was not signed for peakpoint" in refusal(signing.signer, manifest, allowed)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist: sign= takes the file of an SSH key."),
        (lambda path: path.write_text("not a key"), "cannot sign: "),
        (lambda path: make_key(path).chmod(0o644), "cannot sign: Permissions 0644 for"),
    ],
)
def test_a_key_that_cannot_sign_is_one_line(make, sentence, tmp_path):
    make(tmp_path / "key")
    assert sentence in refusal(signing.check_key, tmp_path / "key")


def test_without_ssh_keygen(key, manifest, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CheckpointError, match=r"ssh-keygen cannot be run.*install OpenSSH"):
        signing.check_key(key)


def test_a_key_in_the_home_directory(key, manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    signing.check_key(Path("~/key"))
