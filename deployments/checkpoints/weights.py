"""The safetensors of one component, a tensor at a time: neither side ever holds a whole component."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


class Weights:
    """Read-only view of the tensors in a component's folder, one file or many.

    Raises:
        FileNotFoundError: there are none, or a shard that the index names is missing.
        ValueError: a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, str] = {}
        self._shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        index = _index(folder)
        for file in dict.fromkeys(index.values()) if index else _single_files(folder):
            with self._open(file) as content:
                for name in content.keys():  # noqa: SIM118 (not a dict)
                    part = content.get_slice(name)
                    self._shapes[name] = (tuple(part.get_shape()), str(part.get_dtype()))
                    self._files[name] = file
        if lost := sorted(index.keys() - self._files.keys()):
            raise ValueError(f"{folder}: {lost[0]} is not in {index[lost[0]]}, where the index says it is")

    def __iter__(self) -> Iterator[str]:
        """Names, file by file."""
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> Any:
        """The tensor, on the CPU. A view of the file: the system may drop its pages at any time."""
        with self._open(self._files[name]) as content:
            return content.get_tensor(name)

    def count(self, name: str) -> int:
        """Numbers in a tensor."""
        return math.prod(self._shapes[name][0])

    def is_floating(self, name: str) -> bool:
        return "F" in self._shapes[name][1]

    def bytes(self, name: str) -> int:
        """Size of a tensor as it is stored."""
        shape, dtype = self._shapes[name]
        return math.prod(shape) * _BYTES.get(dtype, 1)

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes(name) for name in self)

    @property
    def stem(self) -> str:
        """What the files are called, less their number: `model`, `diffusion_pytorch_model`."""
        first = next(iter(self._files.values()))
        return re.sub(r"-\d+-of-\d+$", "", first.removesuffix(SUFFIX))

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        path = self._folder / file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the download is not complete")
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from None


def _index(folder: Path) -> dict[str, str]:
    """Tensor name to file, if the folder says so."""
    paths = sorted(folder.glob(f"*{INDEX}"))
    return dict(json.loads(paths[0].read_text("utf-8"))["weight_map"]) if paths else {}


def _single_files(folder: Path) -> list[str]:
    files = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no {SUFFIX} file: other formats are not read")
    if len(files) > 1:
        raise ValueError(f"{folder} holds {' and '.join(files[:2])} without an index: keep only one of them")
    return files


class ShardWriter:
    """Writes tensors into numbered files, each as soon as it is full.

    Args:
        folder: where; it exists.
        stem: what the files are called, less their number.
        limit: bytes of a file; a larger tensor gets a file of its own.
    """

    def __init__(self, folder: Path, stem: str, limit: int) -> None:
        self._folder, self._stem, self._limit = folder, stem, limit
        self._held: dict[str, Any] = {}
        self._held_bytes = 0
        self._written: list[list[str]] = []
        self.total_bytes = 0

    def add(self, name: str, tensor: Any) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._held and self._held_bytes + size > self._limit:
            self._flush()
        self._held[name] = tensor.detach().cpu().contiguous()
        self._held_bytes += size
        self.total_bytes += size

    def finish(self) -> None:
        """Write what is held, give the files their final names, and write the index if they are several."""
        if self._held:
            self._flush()
        count = len(self._written)
        where: dict[str, str] = {}
        for number, names in enumerate(self._written, 1):
            file = f"{self._stem}{SUFFIX}"
            if count > 1:
                file = f"{self._stem}-{number:05d}-of-{count:05d}{SUFFIX}"
            self._part(number).rename(self._folder / file)
            where |= dict.fromkeys(names, file)
        if count > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(where.items()))}
            path = self._folder / f"{self._stem}{INDEX}"
            path.write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def _flush(self) -> None:
        from safetensors.torch import save_file

        path = self._part(len(self._written) + 1)
        save_file(self._held, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors writes 0600, which another user's server cannot read
        self._written.append(list(self._held))
        self._held, self._held_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"{self._stem}.part-{number}"
