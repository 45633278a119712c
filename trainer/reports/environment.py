"""What a run was made with: the commit of the code, packages, interpreter and machine."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "tensorboard", "peakpoint")


def git(*arguments: str) -> str | None:
    """Return the output of git in the code's directory, or None without git or a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def code() -> dict[str, Any]:
    """Return the commit of the code, and the diff of what is not committed."""
    commit = git("rev-parse", "HEAD")
    return {
        "git_commit": commit.strip() if commit else None,
        "git_diff": git("diff", "HEAD") if commit else None,
    }


def machine() -> dict[str, Any]:
    """Return packages, interpreter and machine."""
    import torch

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": packages,
        "python": platform.python_version(),
        "hardware": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "cpu_threads": torch.get_num_threads(),
            "gpus": gpus,
            "cuda": torch.version.cuda,
        },
    }
