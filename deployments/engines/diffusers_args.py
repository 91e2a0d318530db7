"""`engine_args` of the diffusers engine."""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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
    """torch.compile of the transformer's repeated blocks; needs a compiler, and minutes at each new size."""
    offload: Literal["none", "model"] = "none"
    """model: on a GPU, keep only the component in use on the card: slower, for small cards."""
    vae_tiling: bool = False
    """Decode in tiles: less memory above a megapixel, other bits at the seams."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """torch's CPU threads; by default OMP_NUM_THREADS as Ray sets it, else num_cpus."""
    revision: str | None = None
    local_files_only: bool = False
    """Never ask the hub, even where source is a hub id."""
    stuck_after_s: Annotated[float, Field(gt=0)] = 600
    """A running request that makes no step for this long counts as hung, and the replica is replaced."""

    def device_for(self, gpu_fraction: float) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if gpu_fraction > 0 else "cpu"

    def threads_for(self, num_cpus: float) -> int | None:
        """None leaves torch's own choice, which follows OMP_NUM_THREADS."""
        if self.threads is None and os.environ.get("OMP_NUM_THREADS"):
            return None
        return self.threads or max(1, math.floor(num_cpus))
