"""Digests of tensors by name: equal ones mean values that are equal bit for bit."""

from collections.abc import Iterable

import torch
from torch import Tensor

from peakpoint.base import digests


def digest_of(tensors: Iterable[tuple[str, object]]) -> str:
    """Return the BLAKE3 digest of names, types, shapes and values, these in logical order on the CPU.

    Memory formats and devices make no difference. What is not a tensor counts by its repr.
    """
    found = digests.hasher(digests.BLAKE3)
    for name, value in tensors:
        if not isinstance(value, Tensor):
            found.update(f"{name} {value!r}\n".encode())
            continue
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        plain = value.detach().to("cpu").contiguous().reshape(-1)
        found.update(memoryview(plain.view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digests.named(found)
