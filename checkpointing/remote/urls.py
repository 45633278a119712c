"""URLs of remote places: which can be used, and how they are shown."""

import os
import re
from collections.abc import Iterable

from peakpoint.base.errors import CheckpointError

S3 = ("s3", "s3a")

_SECRET = re.compile(r"SECRET|PASSW|TOKEN|_KEY", re.IGNORECASE)
_USER = r"(?P<protocol>[A-Za-z0-9+.-]*)://[^\s@/:'\"]*"
# A secret may hold slashes; what begins with a number and a slash is a port.
_PASSWORD = re.compile(_USER + r":(?!\d+(/|$))[^\s@]*@")


def shown(text: str) -> str:
    """Return `text` on one line, without passwords and queries of URLs and secrets of the environment."""
    text = _PASSWORD.sub(r"\g<protocol>://***@", " ".join(text.split()))
    text = re.sub(r"(\w://)[^/\s@]*@", r"\1***@", text)
    text = re.sub(r"(\w://[^\s?]*)\?\S*", r"\1?***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = text.replace(value, "***")
    return text


def refuse_passwords(arguments: Iterable[str]) -> None:
    """Raise CheckpointError, which does not show it, for a word that holds the password of a URL."""
    for argument in arguments:
        if found := _PASSWORD.search(argument):
            protocol = found["protocol"]
            names = f"FSSPEC_{protocol.upper()}_PASSWORD"
            if protocol in S3:
                names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise CheckpointError(
                f"{shown(argument)} holds a password, which would be written down with the run: give it in "
                f"the environment, as {names}."
            )


def check_url(url: str, key: str = "URL") -> str:
    """Return the protocol of a URL, without contacting it. Raises CheckpointError if it cannot be used."""
    protocol, mark, path = url.partition("://")
    if not mark or not path.strip("/") or "::" in url or re.search(r"[\s?#]", url):
        raise CheckpointError(f"{key}={shown(url)} is not a URL such as s3://bucket/folder.")
    refuse_passwords([f"{key}={url}"])
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise CheckpointError(
            f"{key}={shown(url)}: fsspec knows no protocol {protocol}; s3, gs, abfs, sftp and file are some."
        ) from None
    except ImportError as error:
        hint = ': pip install "peakpoint[s3]".' if protocol in S3 else f": {shown(str(error))}."
        raise CheckpointError(f"{key}={shown(url)} needs a package that is not installed{hint}") from None
    return protocol


def is_url(text: str) -> bool:
    """Return whether a word means a remote place and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None
