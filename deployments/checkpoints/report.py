"""What quantizing a folder did: sizes per component, error per layer. Written as JSON beside the weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "quantization_report.json"


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer."""

    name: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    svd_rank: int
    """0: SDNQ found the layer too small for the rank that was asked for, and left the SVD out."""
    error: float
    """|used - original| / |original|, Frobenius norms; `used` is the weight that the layer computes with."""


@dataclass(frozen=True)
class ComponentReport:
    """One folder of a checkpoint. `layers` is empty for what was copied as it is."""

    name: str
    bytes_before: int
    """Of the tensors as stored."""
    bytes_after: int
    layers: tuple[LayerReport, ...] = ()

    @property
    def worst(self) -> list[LayerReport]:
        return sorted(self.layers, key=lambda layer: -layer.error)

    @property
    def error(self) -> float | None:
        """Mean over the layers, each counting by its size."""
        size = sum(layer.bytes_before for layer in self.layers)
        return sum(layer.error * layer.bytes_before for layer in self.layers) / size if size else None


@dataclass(frozen=True)
class QuantizeReport:
    source: str
    """Name of the folder, not its path: a checkpoint travels."""
    settings: dict[str, Any]
    device: str
    seconds: float
    components: tuple[ComponentReport, ...]

    @property
    def bytes_before(self) -> int:
        return sum(component.bytes_before for component in self.components)

    @property
    def bytes_after(self) -> int:
        return sum(component.bytes_after for component in self.components)

    def write(self, folder: Path) -> Path:
        """As JSON, the worst layer of each component first."""
        path = folder / FILE
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", "utf-8")
        return path

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "settings": self.settings,
            "device": self.device,
            "seconds": round(self.seconds, 1),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "components": [
                {
                    "name": component.name,
                    "bytes_before": component.bytes_before,
                    "bytes_after": component.bytes_after,
                    "error": component.error,
                    "layers": [asdict(layer) for layer in component.worst],
                }
                for component in self.components
            ],
        }
