"""What SDNQ will make of a component, found out on torch's meta device: no weight is read for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deployments.checkpoints.weights import Weights
from deployments.engines.quantization import QuantizeArgs, import_sdnq, sdnq_options

SUFFIX = ".weight"


@dataclass(frozen=True)
class Plan:
    """Which layers of a component are quantized, in SDNQ's order, and what they become."""

    layers: dict[str, str]
    """Name of a layer in the model to the name of its weight in the checkpoint."""
    sizes: dict[str, int]
    """Name of a layer to the bytes that its weight will take."""
    config: Any
    """SDNQ's configuration, as it belongs into the component's config.json."""

    def bytes_after(self, weights: Weights) -> int:
        """Size of the component once it is quantized; what stays is stored with 16 bits."""
        taken = set(self.layers.values())
        rest = (name for name in weights if name not in taken)
        return sum(self.sizes.values()) + sum(
            2 * weights.count(name) if weights.is_floating(name) else weights.bytes(name) for name in rest
        )


def plan(folder: Path, library: str, class_name: str, weights: Weights, args: QuantizeArgs) -> Plan:
    """Plan one component.

    Args:
        folder: the component's own folder.
        library, class_name: as in model_index.json.

    Raises:
        ValueError: the checkpoint lacks the weight of a layer that its config asks for.
    """
    import torch

    model = empty_model(folder, library, class_name)
    in_checkpoint = {model_name: name for name, model_name in _renamed(model, weights)}
    model = quantize_empty(model, args)
    layers, sizes = {}, {}
    for name, layer in model.named_modules():
        if hasattr(layer, "sdnq_dequantizer"):
            if layer.original_class is not torch.nn.Linear:
                raise ValueError(f"{folder}: {name} is a {layer.original_class.__name__}, not a linear layer")
            if name + SUFFIX not in in_checkpoint:
                raise ValueError(f"{folder} lacks the weight of {name}, which its config.json asks for")
            layers[name] = in_checkpoint[name + SUFFIX]
            sizes[name] = tensor_bytes(layer)
    return Plan(layers, sizes, model.quantization_config)


def empty_model(folder: Path, library: str, class_name: str) -> Any:
    """The model that a component's config.json describes, in bfloat16 on the meta device."""
    import torch
    from accelerate import init_empty_weights

    if library not in ("diffusers", "transformers"):
        raise ValueError(f"{folder}: a model of the library {library!r} cannot be quantized")
    cls = getattr(import_module(library), class_name)
    with init_empty_weights():
        if library == "diffusers":
            model = cls.from_config(cls.load_config(folder))
        else:
            model = cls(cls.config_class.from_pretrained(folder))
    # torch's own `to`: diffusers' warns about layers that it would keep in float32, of which there are none.
    return torch.nn.Module.to(model, torch.bfloat16)


def quantize_empty(model: Any, args: QuantizeArgs) -> Any:
    """Let SDNQ at a model without weights: shapes, names and its configuration come out as they would."""
    import_sdnq("cpu")
    from sdnq import sdnq_post_load_quant

    return sdnq_post_load_quant(model, **sdnq_options(args))


def tensor_bytes(layer: Any) -> int:
    """Bytes of a quantized layer's own weight: numbers, scales, zero points and low-rank factors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weight_tensors(layer).values())


def weight_tensors(layer: Any) -> dict[str, Any]:
    """What takes the place of a quantized layer's `weight` in its state dict."""
    from sdnq.common import sdnq_keys

    tensors = {key: getattr(layer, key, None) for key in sorted(sdnq_keys)}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def component_classes(folder: Path) -> dict[str, tuple[str, str]]:
    """Component to (library, class) by model_index.json.

    Raises:
        ValueError: this is no Qwen-Image checkpoint.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no diffusers checkpoint: it has no model_index.json")
    index = json.loads(path.read_text("utf-8"))
    pipeline = str(index.get("_class_name"))
    if not pipeline.startswith("QwenImage"):
        raise ValueError(f"{folder} is a {pipeline}: only Qwen-Image checkpoints can be quantized here")
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(value)
    }


def _renamed(model: Any, weights: Iterable[str]) -> list[tuple[str, str]]:
    """(name in the checkpoint, name in the model). Older text encoders were saved under other names."""
    rename = _renaming(model)
    return [(name, rename(name)) for name in weights]


def _renaming(model: Any) -> Callable[[str], str]:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return lambda name: name
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    known = model.state_dict()
    return lambda name: str(rename_source_key(name, rules, [], model.base_model_prefix, known)[0])
