"""Signatures of manifests with SSH keys: `ssh-keygen -Y sign`, checked against a list of allowed signers.

A manifest holds the digests of all files of its release, so its signature covers them all. It lies beside the
manifest as `<manifest>.sig`, the default of ssh-keygen.
"""

import subprocess
from pathlib import Path

from peakpoint.base import given
from peakpoint.base.bounded import read_bytes
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.files import write_atomic
from peakpoint.checkpointing.storage.manifest import LARGEST

LINE = "a line of it is a name and a public key, such as `ada@lab ssh-ed25519 AAAA...`"
"""What a list of allowed signers holds."""
NAMESPACE = "peakpoint"
"""Namespace of the signatures: one made for git or mail is not accepted."""


def signature_of(manifest: Path) -> Path:
    """Return the path of a manifest's signature."""
    return manifest.with_name(f"{manifest.name}.sig")


def check_key(key: Path) -> None:
    """Raise CheckpointError unless this key can sign."""
    _signature(b"", key)


def sign(manifest: Path, key: Path) -> Path:
    """Sign a manifest with a private key, or with a public one whose private key ssh-agent holds.

    Returns the path of the signature, durable by then. Raises CheckpointError.
    """
    signature = signature_of(manifest)
    write_atomic(signature, _signature(read_bytes(manifest, LARGEST), key))
    return signature


def check_allowed(allowed: Path) -> None:
    """Raise CheckpointError unless this list of allowed signers is a file."""
    if not allowed.is_file():
        raise CheckpointError(f"{allowed} is not a file: name a list of allowed signers; {LINE}.")


def signer(manifest: Path, allowed: Path) -> str:
    """Return the signer of a manifest by the name in `allowed`, a file in ssh's allowed_signers format.

    Raises CheckpointError when it is not signed, was changed since, or its signer is not in the list.
    """
    check_allowed(allowed)
    signature = signature_of(manifest)
    if not signature.is_file():
        raise CheckpointError(f"{manifest} is not signed: there is no {signature.name} beside it.")
    common = ["-n", NAMESPACE, "-s", str(signature)]
    found = _run(["find-principals", "-s", str(signature), "-f", str(allowed)], b"")
    lines = found.stdout.decode(errors="replace").splitlines()
    if found.returncode or not lines:
        wrong = [line for line in _lines(found) if line.startswith(f"{allowed}:")]
        unread = f" {wrong[0]}: {LINE}." if wrong else ""
        raise CheckpointError(f"{manifest} is signed with a key that {allowed} does not list.{unread}")
    name = lines[0].split(",")[0]
    checked = _run(["verify", "-f", str(allowed), "-I", name, *common], read_bytes(manifest, LARGEST))
    if checked.returncode:
        raise CheckpointError(
            f"{manifest} does not match its signature: it was changed after it was signed, or was not signed "
            f"for {NAMESPACE}."
        )
    return name


def _signature(data: bytes, key: Path) -> str:
    key = given.path(key)
    if not key.is_file():
        raise CheckpointError(f"{key} does not exist: sign= takes the file of an SSH key.")
    done = _run(["sign", "-f", str(key), "-n", NAMESPACE], data)
    if done.returncode:
        reasons = [line for line in _lines(done) if not line.startswith("@") and "standard input" not in line]
        raise CheckpointError(f"{key} cannot sign: {' '.join(reasons) or 'ssh-keygen failed'}.")
    return done.stdout.decode()


def _lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Return what ssh-keygen wrote to its standard error."""
    return [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]


def _run(arguments: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["ssh-keygen", "-Y", *arguments], input=data, capture_output=True, check=False)
    except OSError as error:
        raise CheckpointError(
            f"ssh-keygen cannot be run ({os_reason(error)}): install OpenSSH 8.2 or newer "
            "to sign and to check signatures."
        ) from None
