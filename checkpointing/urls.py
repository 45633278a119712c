"""URLs of remote places: which can be used, and how they are shown."""

import os
import re

from checkpointing.errors import CheckpointError

S3 = ("s3", "s3a")

_SECRET = re.compile(r"SECRET|PASSW|TOKEN|_KEY", re.IGNORECASE)


def shown(text: str) -> str:
    """`text` on one line, without the passwords of URLs, their queries, and secrets of the environment."""
    text = re.sub(r"(\w://)[^/\s@]*@", r"\1***@", " ".join(text.split()))
    text = re.sub(r"(\w://[^\s?]*)\?\S*", r"\1?***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = text.replace(value, "***")
    return text


def check_url(url: str, key: str = "URL") -> str:
    """The protocol of a URL that can be used, without reaching for it. Raises CheckpointError: one line."""
    protocol, mark, path = url.partition("://")
    if not mark or not path.strip("/") or "::" in url or re.search(r"[\s?#]", url):
        raise CheckpointError(f"{key}={shown(url)} is not a URL such as s3://bucket/folder.")
    if "@" in path.split("/")[0] and ":" in path.split("@")[0]:
        raise CheckpointError(
            f"{key}={shown(url)} holds a password, which would be written down with the run: give it to "
            f"fsspec in the environment, as FSSPEC_{protocol.upper()}_PASSWORD."
        )
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
    """Whether a word means a remote place and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None
