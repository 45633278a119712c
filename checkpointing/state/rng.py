"""The state of every random number generator, as tensors and plain types, and back."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from peakpoint.base.errors import restoring


def rng_state() -> dict[str, Any]:
    """Return the state of Python, NumPy and torch, on the CPU and on every CUDA device in use."""
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            **{k: v for k, v in numpy_state.items() if k != "state"},
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


@restoring("rng_state")
def restore_rng(saved: Mapping[str, Any]) -> None:
    """Set every generator; of CUDA devices those that both the state and this machine have.

    Raises CheckpointError for a state of another form.
    """
    random.setstate(saved["python"])
    state = dict(saved["numpy"])
    key = state.pop("key").numpy().astype(np.uint32)
    np.random.set_state({**state, "state": {"key": key, "pos": state.pop("pos")}})
    torch.set_rng_state(saved["torch"].cpu())
    if torch.cuda.is_available():
        for device, value in enumerate(saved["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(value.cpu(), device)
