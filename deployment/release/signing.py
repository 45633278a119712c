"""Signatures of manifests with SSH keys: `ssh-keygen -Y sign`, checked against a list of who may sign.

A manifest holds the digests of all that belongs to its release, so its signature vouches for all of it. It
lies beside the manifest as `<manifest>.sig`, where ssh-keygen itself would put it and look for it.
"""

import subprocess
from pathlib import Path

from peakpoint.base import given
from peakpoint.base.bounded import read_bytes
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.files import write_atomic
from peakpoint.checkpointing.storage.manifest import LARGEST

NAMESPACE = "peakpoint"
"""What a signature is for: one made for git or mail does not count here."""


def signature_of(manifest: Path) -> Path:
    """Where the signature of a manifest lies."""
    return manifest.with_name(f"{manifest.name}.sig")


def check_key(key: Path) -> None:
    """Raise CheckpointError unless this key can sign: told before anything is written."""
    _signature(b"", key)


def sign(manifest: Path, key: Path) -> Path:
    """Sign a manifest with a private key, or with a public one whose private half ssh-agent has.

    Durable on return; returns the signature's path. Raises CheckpointError.
    """
    signature = signature_of(manifest)
    write_atomic(signature, _signature(read_bytes(manifest, LARGEST), key))
    return signature


def check_allowed(allowed: Path) -> None:
    """Raise CheckpointError unless this list of allowed signers is there."""
    if not allowed.is_file():
        raise CheckpointError(f"{allowed} does not exist: name a file of allowed signers, as ssh-keygen has.")


def signer(manifest: Path, allowed: Path) -> str:
    """Who signed a manifest, by the name in `allowed` (the format is that of ssh's allowed_signers).

    Raises CheckpointError when it is not signed, was changed since, or was signed by nobody in the list.
    """
    check_allowed(allowed)
    signature = signature_of(manifest)
    if not signature.is_file():
        raise CheckpointError(f"{manifest} is not signed: there is no {signature.name} beside it.")
    common = ["-n", NAMESPACE, "-s", str(signature)]
    found = _run(["find-principals", "-s", str(signature), "-f", str(allowed)], b"")
    lines = found.stdout.decode(errors="replace").splitlines()
    if found.returncode or not lines:
        raise CheckpointError(f"{manifest} is signed with a key that {allowed} does not list.")
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
        lines = done.stderr.decode(errors="replace").splitlines()
        told = [line.strip() for line in lines if not line.startswith("@") and "standard input" not in line]
        raise CheckpointError(f"{key} cannot sign: {' '.join(told) or 'ssh-keygen failed'}.")
    return done.stdout.decode()


def _run(arguments: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["ssh-keygen", "-Y", *arguments], input=data, capture_output=True, check=False)
    except OSError as error:
        raise CheckpointError(
            f"ssh-keygen cannot be run ({os_reason(error)}): install OpenSSH 8.2 or newer "
            "to sign and to check signatures."
        ) from None
