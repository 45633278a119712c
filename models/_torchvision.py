"""The one place where torchvision is imported: late, because it costs a second, and also beside a CPU torch.

A torchvision wheel built for CUDA cannot load its C++ operators beside a CPU build of torch, and its import
then fails with "operator torchvision::nms does not exist", though none of its models or datasets needs them.
"""

from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

# Schemas that torchvision looks up while it is imported. A library must stay alive for its schemas to.
_SCHEMAS = ("nms", "qnms")
_KEPT: list[object] = []


@cache
def torchvision() -> ModuleType:
    """Return the torchvision package, its operators declared first where its own library cannot be loaded.

    Raises ImportError when torchvision is not installed, or does not fit the installed torch.
    """
    _declare_operators()
    import torchvision.datasets
    import torchvision.models

    package: ModuleType = torchvision
    return package


def _declare_operators() -> None:
    """Declare the schemas of nms and qnms, unless torchvision's library brings them."""
    import torch

    if _loads_own_operators():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


def _loads_own_operators() -> bool:
    """Return whether `torchvision/_C.so` is there and fits this torch; a healthy build is left as it is."""
    import torch

    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed: pip install torchvision.", name="torchvision")
    folder = Path(spec.origin).parent
    for suffix in EXTENSION_SUFFIXES:
        if (folder / f"_C{suffix}").exists():
            try:
                torch.ops.load_library(folder / f"_C{suffix}")
            except OSError:
                return False
            return True
    return False
