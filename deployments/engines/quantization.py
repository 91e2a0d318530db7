"""SDNQ: tell quantized folders from others, load both kinds, quantize in memory, save.

What is loaded from a saved folder is bit-equal to what was quantized in memory, and quantizing twice gives
the same weights, so that every replica paints the same picture from the same seed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

PIPELINES = ("QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline")
Component = Literal["transformer", "text_encoder"]


class QuantizeArgs(BaseModel):
    """How to quantize a checkpoint that is not quantized yet. Norms, embeddings and the VAE stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_dtype: Annotated[str, Field(pattern=r"^(u?int[2-8]|float8_e4m3fn)$")] = "uint4"
    use_svd: bool = True
    svd_rank: Annotated[int, Field(ge=1, le=256)] = 32
    group_size: Annotated[int, Field(ge=-1)] = 0
    """Weights that share a scale; 0 lets SDNQ choose, -1 takes whole rows."""
    components: tuple[Component, ...] = ("transformer", "text_encoder")


def resolve_source(source: str, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The local folder of a checkpoint: a path, a path in the project, or a download from the hub."""
    project = Path(__file__).resolve().parents[2]
    for folder in (Path(source).expanduser(), project / source):
        if folder.is_dir():
            return folder.resolve()
    if source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no checkpoint folder at {source}")
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(source, revision=revision, local_files_only=local_files_only))


def quantized_components(folder: Path) -> frozenset[str]:
    """Names of the components whose JSON config says that SDNQ wrote them."""
    found = set()
    for path in folder.glob("*/*config.json"):
        content = json.loads(path.read_text("utf-8"))
        config = content if path.name == "quantization_config.json" else content.get("quantization_config")
        if isinstance(config, dict) and str(config.get("quant_method", "")).startswith("sdnq"):
            found.add(path.parent.name)
    return frozenset(found)


def is_quantized(folder: str | os.PathLike[str]) -> bool:
    return bool(quantized_components(Path(folder)))


def load_pipeline(folder: Path, dtype: Any, quantize: QuantizeArgs | None = None, device: str = "cpu") -> Any:
    """A pipeline ready for `.to(device)`. `quantize` applies to components that are not quantized already."""
    name = _class_name(folder)
    done = quantized_components(folder)
    todo = [name for name in quantize.components if name not in done] if quantize else []
    if done or todo:
        import_sdnq(device)  # before diffusers: without it a quantized text encoder mis-loads silently
    import diffusers

    _hush_loading()
    parts = {"transformer": _load_transformer(folder, dtype)} if "transformer" in done else {}
    pipe = getattr(diffusers, name).from_pretrained(folder, dtype=dtype, local_files_only=True, **parts)
    pipe.set_progress_bar_config(disable=True)
    if quantize and done:
        logger.info("%s is quantized already (%s)", folder, ", ".join(sorted(done)))
    if quantize and todo:
        quantize_pipeline(pipe, quantize, dtype, device, only=todo)
    return pipe


def quantize_pipeline(
    pipe: Any, args: QuantizeArgs, dtype: Any, device: str = "cpu", only: list[Component] | None = None
) -> None:
    """Quantize components in place, each layer on `device`."""
    import_sdnq(device)
    from sdnq import sdnq_post_load_quant

    for name in args.components if only is None else only:
        with reproducible():
            quantized = sdnq_post_load_quant(getattr(pipe, name), **sdnq_options(args, device, dtype))
        setattr(pipe, name, quantized)


def sdnq_options(args: QuantizeArgs, device: str = "cpu", dtype: Any = None) -> dict[str, Any]:
    """Keyword arguments of `sdnq_post_load_quant`; bfloat16 unless `dtype` says otherwise."""
    import torch

    options = args.model_dump(exclude={"components"}) | {"torch_dtype": dtype or torch.bfloat16}
    if device != "cpu":
        options |= {"quantization_device": device, "return_device": device}
    return options


@contextmanager
def reproducible(threads: int = 1) -> Iterator[None]:
    """Quantize one component inside: the same weights come out each time, whoever asks.

    The low-rank SVD draws at random and sums in an order that follows the thread count: without a seed and a
    fixed count, replicas would hold other weights and paint other pictures from one seed.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(before)


def save_pipeline(pipe: Any, folder: str | os.PathLike[str]) -> None:
    """Write a quantized pipeline so that `load_pipeline`, or diffusers after `import sdnq`, reads it."""
    import_sdnq("cpu")
    from sdnq import save_sdnq_model

    save_sdnq_model(pipe, str(folder), is_pipeline=True)
    for path in Path(folder).glob("*/*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600, which another user's server cannot read


def import_sdnq(device: str) -> None:
    """Import SDNQ, which registers itself with transformers and diffusers."""
    if device == "cpu":
        # Eager kernels: compiling needs a C++ compiler and costs minutes at start. Read at import.
        os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")
    # At import it warns that OpenVINO's kernels are not there, which nobody expects.
    log = logging.getLogger("sdnq")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import sdnq  # noqa: F401
    finally:
        log.setLevel(level)


def _load_transformer(folder: Path, dtype: Any) -> Any:
    """By SDNQ's own loader: diffusers' rounds the fp32 scales to `dtype`, which shows in 1 of 4 pixels."""
    from diffusers import QwenImageTransformer2DModel
    from sdnq import load_sdnq_model

    return load_sdnq_model(
        str(folder / "transformer"), model_cls=QwenImageTransformer2DModel, dtype=dtype
    ).eval()


def _class_name(folder: Path) -> str:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} is no diffusers checkpoint: it has no model_index.json")
    name = json.loads(index.read_text("utf-8")).get("_class_name")
    if name not in PIPELINES:
        raise ValueError(f"{folder} is a {name}; this engine runs {', '.join(PIPELINES)} checkpoints")
    return str(name)


def _hush_loading() -> None:
    """No progress bars in a server's log."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
