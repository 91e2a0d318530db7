"""Which profile a cluster takes, and whether a profile's models fit on its cards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.contracts.settings import ModelSettings
from serve_app.settings import AppSettings, SettingsError

# Cards report a little less than their nominal size (a 24 GB card has 23.6, an 80 GB card 79.6).
_PROFILES = ((135, "gpu-141gb"), (75, "gpu-80gb"), (44, "gpu-48gb"), (22, "gpu-24gb"))


@dataclass(frozen=True)
class Card:
    """One GPU of the cluster."""

    node: str
    name: str
    memory_gb: float


def choose_profile(cards: Sequence[Card]) -> tuple[str, str]:
    """The profile that `auto` stands for, and why.

    Raises:
        SettingsError: there are GPUs, but none that a shipped profile fits.
    """
    if not cards:
        return "demo", "no GPU in the cluster: the demo models, on the CPU"
    smallest = min(cards, key=lambda card: card.memory_gb)
    seen = f"{len(cards)} GPU(s), the smallest a {smallest.name} with {smallest.memory_gb:.0f} GB"
    if len(cards) >= 4 and smallest.memory_gb >= 75:
        return "gpu-cluster", f"{seen}: several large cards, so the autoscaled profile"
    for at_least, profile in _PROFILES:
        if smallest.memory_gb >= at_least:
            return profile, seen
    raise SettingsError(
        f"{seen}, and no shipped profile is that small. Set `profile: demo` to run on the CPU, or write "
        "a profile of your own: see configs/gpu-24gb.yaml."
    )


def placement(settings: AppSettings) -> list[list[tuple[str, float]]]:
    """Cards that the profile needs at its smallest: for each, (model id, fraction), by first fit.

    Serve's scheduler packs in its own order; this is the bound that `build` refuses beyond.
    """
    cards: list[list[tuple[str, float]]] = []
    for model in sorted(settings.models, key=lambda model: -model.gpu_fraction):
        for _ in range(model.autoscaling.min_replicas if model.gpu_fraction else 0):
            _place(model, cards)
    return cards


def _place(model: ModelSettings, cards: list[list[tuple[str, float]]]) -> None:
    if model.gpu_fraction >= 1:
        cards.extend([[(model.id, 1.0)] for _ in range(int(model.gpu_fraction))])
        return
    for card in cards:
        if sum(share for _, share in card) + model.gpu_fraction <= 1 + 1e-9:
            card.append((model.id, model.gpu_fraction))
            return
    cards.append([(model.id, model.gpu_fraction)])


def require_fit(settings: AppSettings, cards: Sequence[Card]) -> None:
    """Refuse a profile that the cluster cannot hold.

    Raises:
        SettingsError: it needs more cards than there are, and the message shows who takes what; or a
            model's weights are larger than its share of the smallest card.
    """
    needed = placement(settings)
    if len(needed) <= len(cards):
        _require_room_for_weights(settings, cards)
        return
    table = "\n".join(
        f"  card {i}: " + ", ".join(f"{model} {share:.2f}" for model, share in card)
        for i, card in enumerate(needed, 1)
    )
    raise SettingsError(
        f"This profile needs {len(needed)} GPU(s) and the cluster has {len(cards)}:\n{table}\n"
        "Lower gpu_fraction or min_replicas, or choose a smaller profile."
    )


def _require_room_for_weights(settings: AppSettings, cards: Sequence[Card]) -> None:
    for model in settings.models:
        weights = _weights_gb(model)
        share = model.gpu_fraction * min((card.memory_gb for card in cards), default=0)
        if model.gpu_fraction and weights > share:
            raise SettingsError(
                f"{model.id}: its weights take {weights:.1f} GB and its share of the smallest card is "
                f"{share:.1f} GB (gpu_fraction {model.gpu_fraction:g}). Raise it, take a larger card, or "
                f"take a quantized copy{_how_to_quantize(model)}."
            )


def _weights_gb(model: ModelSettings) -> float:
    """What a local checkpoint's weights will take; 0 for a hub id, whose files are not here yet."""
    source = Path(model.source)
    files = source.rglob("*.safetensors") if source.is_dir() else ()
    return sum(file.stat().st_size * _share_kept(model, file.parent) for file in files) / 2**30


def _share_kept(model: ModelSettings, component: Path) -> float:
    """What is left of a component's 16 bits a weight when it is quantized at load, before it is on the card.

    A bit more than asked for: scales, zero points and the low-rank part take almost one (uint4 with rank 32
    leaves 0.299 of the full-size transformer: benchmarks/quantized_size.py).
    """
    quantize = model.engine_args.get("quantize")
    already = (component / "quantization_config.json").exists()
    if model.engine != "diffusers" or not isinstance(quantize, dict) or already:
        return 1.0
    if component.name not in quantize.get("components", ("transformer", "text_encoder")):
        return 1.0
    bits = re.search(r"[2-8]", str(quantize.get("weights_dtype", "uint4")))
    return (int(bits.group()) + 1) / 16 if bits else 1.0


def _how_to_quantize(model: ModelSettings) -> str:
    if model.engine != "diffusers":
        return ""
    return f": `atelier quantize {model.source} NEW_FOLDER` makes one"
