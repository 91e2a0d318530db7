"""`engine_args` of the diffusers engine."""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.contracts.settings import ModelSettings
from deployments.engines.quantization import QuantizeArgs


class DiffusersArgs(BaseModel):
    """Everything has a default; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto: the GPU if the model has a share of one (gpu_fraction > 0), else the CPU."""
    quantize: QuantizeArgs | None = None
    """Quantize at load with SDNQ. A checkpoint that is quantized already is taken as it is."""
    quantized_matmul: bool = False
    """GPU: int8 matrix products on SDNQ weights. Faster, not batch-invariant, needs Triton."""
    compile: bool = False
    """torch.compile of the transformer's repeated blocks: needs a compiler, and minutes at the start."""
    offload: Literal["none", "model"] = "none"
    """model: on a GPU, keep only the component in use on the card: slower, for small cards."""
    vae_tiling: bool = False
    """Decode in tiles: less memory above a megapixel, other bits at the seams."""
    batch_pixels: Annotated[int, Field(gt=0)] | None = None
    """Pixels of all pictures that take a step together, the references of edits counted. Wider batches paint
    more per second and make each step longer. By default those of the largest picture, but 8 of 128x128."""
    pixels_in_flight: Annotated[int, Field(gt=0)] | None = None
    """Pixels of all pictures begun and not finished; the rest waits in turn. By default 8 batches."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """torch's CPU threads; by default OMP_NUM_THREADS as Ray sets it, else num_cpus."""
    revision: str | None = None
    local_files_only: bool = False
    """Never ask the hub, even where source is a hub id."""
    stuck_after_s: Annotated[float, Field(gt=0)] = 600
    """A running request that makes no step for this long counts as hung, and the replica is replaced."""

    def bounds_for(self, settings: ModelSettings) -> tuple[int, int]:
        """Pixels of a step and pixels in flight."""
        largest = settings.generation.max_pixels if settings.generation else 0
        batch = self.batch_pixels or max(largest, 8 * 128 * 128)
        return batch, max(batch, self.pixels_in_flight or 8 * batch)

    def device_for(self, gpu_fraction: float) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if gpu_fraction > 0 else "cpu"

    def threads_for(self, num_cpus: float) -> int | None:
        """None leaves torch's own choice, which follows OMP_NUM_THREADS."""
        if self.threads is None and os.environ.get("OMP_NUM_THREADS"):
            return None
        return self.threads or max(1, math.floor(num_cpus))
