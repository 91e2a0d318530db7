"""Lets torchvision's CUDA wheel import beside a CPU-only torch, in every process of the environment.

Package indexes carry one torchvision wheel: the CUDA build. Its C++ extension does not load beside a
CPU-only torch, so the operators `nms` and `qnms` stay unknown and `import torchvision` fails where it
attaches shape functions to them. Declaring the two is enough: all that vLLM, transformers and diffusers
use of torchvision is pure Python.

vLLM's and Ray's subprocesses import torchvision before any code of Atelier runs. So
`python -m deployments.engines.torchvision_cpu` (a step of scripts/setup.sh) writes a .pth file into
site-packages: it puts a finder for the one name `torchvision` on `sys.meta_path` of each interpreter, and
imports nothing, this module included, until something imports torchvision.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PTH = (
    'import sys; sys.meta_path.insert(0, type("AtelierTorchvision", (), {"find_spec": staticmethod('
    "lambda name, path=None, target=None: __import__("
    '"deployments.engines.torchvision_cpu", fromlist=["find_spec"]).find_spec(name, path, target)'
    ' if name == "torchvision" else None)}))\n'
)
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: Any = None  # torch forgets the operators when the Library that declared them is collected


def install_pth() -> Path:
    """Write the .pth file for the running Python's environment."""
    path = Path(sysconfig.get_path("purelib")) / "atelier_torchvision.pth"
    path.write_text(PTH)
    return path


def find_spec(
    name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """What `sys.meta_path` asks: the spec of torchvision, with the operators declared before it runs."""
    spec = PathFinder.find_spec(name, path, target)
    if spec is not None and spec.loader is not None:
        spec.loader = _DeclaringLoader(spec.loader)
    return spec


class _DeclaringLoader(Loader):
    """Declares the operators, then gives way to the loader that Python would have used."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        declare_operators(spec.submodule_search_locations or [])
        self._loader.exec_module(module)


def declare_operators(package_path: Sequence[str]) -> bool:
    """Declare nms and qnms if torch is CPU-only and torchvision's extension does not load. True if it did."""
    global _library
    import torch

    if _library is not None or torch.version.cuda or torch.version.hip or _extension_loads(package_path):
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        _library.define(operator)
    return True


def _extension_loads(package_path: Sequence[str]) -> bool:
    """Load the extension as torchvision itself will. Loading it a second time changes nothing."""
    import torch

    extension = PathFinder.find_spec("_C", list(package_path))
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except (ImportError, OSError):
        return False
    return True


if __name__ == "__main__":
    install_pth()
