"""The pipeline of the diffusers engine: loading, placing, counting tokens, naming what went wrong."""

from __future__ import annotations

import copy
import gc
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployments.contracts.errors import AtelierError, ContextTooLong, EngineFailed, OutOfMemory
from deployments.contracts.settings import ModelSettings
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.painting import Fault
from deployments.engines.quantization import load_pipeline, quantized_components, resolve_source

logger = logging.getLogger(__name__)

MAX_TEXT_TOKENS = 1024  # what the pipeline's encoder keeps of a prompt and its template's end


class LoadedPipeline:
    """One diffusers pipeline, its device and its health."""

    def __init__(self, settings: ModelSettings, args: DiffusersArgs) -> None:
        self._settings = settings
        self._args = args
        self.pipe: Any = None
        self.device = args.device_for(settings.gpu_fraction)
        self.broken: str | None = None
        """Why this process cannot paint any more, if so."""
        self._tokenizer: Any = None
        self._counting = threading.Lock()

    # ------------------------------------------------------------------ life
    def load(self) -> None:
        import torch

        if threads := self._args.threads_for(self._settings.num_cpus):
            torch.set_num_threads(threads)
        self._claim_gpu()
        folder = resolve_source(
            self._settings.source,
            revision=self._args.revision,
            local_files_only=self._args.local_files_only,
        )
        dtype = getattr(torch, self._args.dtype)
        self.pipe = load_pipeline(folder, dtype, self._args.quantize, self.device)
        _check_schedule(self.pipe, folder)
        self._place(quantized=bool(self._args.quantize or quantized_components(folder)))
        # Tokens are counted in other threads than those that encode, and a tokenizer is not made for two.
        self._tokenizer = copy.deepcopy(self.pipe.tokenizer)

    def free(self) -> None:
        self.pipe = self._tokenizer = None
        gc.collect()
        self._empty_cache()

    def _claim_gpu(self) -> None:
        """Cap this process at its share of the card before the first byte is allocated."""
        if not self.device.startswith("cuda"):
            return
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError(
                f"{self._settings.id} asks for {self.device} but torch sees no GPU: set gpu_fraction to 0 "
                "to run it on the CPU, or install the CUDA build of torch"
            )
        if 0 < self._settings.gpu_fraction < 1:
            torch.cuda.set_per_process_memory_fraction(
                self._settings.gpu_fraction, torch.device(self.device).index
            )

    def _place(self, quantized: bool) -> None:
        args, pipe = self._args, self.pipe
        if quantized and args.quantized_matmul:
            from sdnq.loader import apply_sdnq_options_to_model

            pipe.transformer = apply_sdnq_options_to_model(pipe.transformer, use_quantized_matmul=True)
        if args.vae_tiling:
            pipe.vae.enable_tiling()
        if self.device.startswith("cuda") and args.offload == "model":
            pipe.enable_model_cpu_offload(device=self.device)
        else:
            pipe.to(self.device)
        if args.compile:
            compile_blocks(pipe.transformer)

    # ------------------------------------------------------------------ facts
    @property
    def cell(self) -> int:
        """Pixels along the side of one latent token."""
        return int(self.pipe.vae_scale_factor * self.pipe.transformer.config.patch_size)

    def count_tokens(self, text: str, param: str) -> int:
        """Tokens of a text. Raises ContextTooLong for what the encoder would cut."""
        template, start = self.pipe.prompt_template_encode, self.pipe.prompt_template_encode_start_idx
        with self._counting:
            count = len(self._tokenizer(text).input_ids)
            # The end of the template counts against the window.
            total = len(self._tokenizer(template.format(text)).input_ids) - start
        if total > MAX_TEXT_TOKENS:
            spare = MAX_TEXT_TOKENS - total + count
            raise ContextTooLong(
                f"The {param.replace('_', ' ')} is too long: this model reads at most {spare} tokens."
                " Shorten it.",
                param=param,
            )
        return count

    def memory_mb(self) -> float:
        """Held by torch on the GPU, or by this process."""
        if self.device.startswith("cuda") and self.broken is None:
            import torch

            return torch.cuda.memory_reserved(self.device) / 2**20
        return _process_mb()

    # ------------------------------------------------------------------ failures
    def fault(self, error: Exception, request_ids: Sequence[str]) -> Fault:
        """Log an error and put it in words for a client."""
        import torch

        if isinstance(error, AtelierError):
            return Fault(error, heals=error.code == "image_not_finite")
        names, text = ", ".join(request_ids), str(error)
        context = {"request_id": names}
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
            logger.error("image request %s: out of memory: %s", names, text, extra=context)
            message = "Out of memory while painting: ask for a smaller size, or try again later."
            return Fault(OutOfMemory(message), heals=True)
        logger.error("image request %s failed", names, exc_info=error, extra=context)
        if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in text:
            self.broken = "The GPU context is lost"  # sticky: only a new process helps
        return Fault(EngineFailed("The image engine failed on this request."), heals=False)

    def recover(self) -> None:
        """After an aborted call, put offloaded modules back as a finished call would."""
        if self._args.offload != "none" and self.pipe is not None:
            self.pipe.maybe_free_model_hooks()
        self._empty_cache()

    def _empty_cache(self) -> None:
        if self.device.startswith("cuda") and self.broken is None:
            import torch

            torch.cuda.empty_cache()


def compile_blocks(transformer: Any) -> None:
    """One compilation for all sizes, batches and texts, and one more for passes of a single row.

    Left to itself torch compiles anew for each shape and gives up after eight. Where two lengths are equal
    by chance, such as a text's and a head's, it would also take them for one and the same.
    """
    import torch

    torch.fx.experimental._config.use_duck_shape = False
    transformer.compile_repeated_blocks(dynamic=True)


def _check_schedule(pipe: Any, folder: Path) -> None:
    """Steps are taken here, not by the pipeline's scheduler, and only in the way of Euler on flows."""
    config, name = pipe.scheduler.config, type(pipe.scheduler).__name__
    odd = config.get("stochastic_sampling") or config.get("invert_sigmas")
    if name != "FlowMatchEulerDiscreteScheduler" or odd or pipe.transformer.config.guidance_embeds:
        raise ValueError(
            f"{folder}: this engine steps FlowMatchEulerDiscreteScheduler without stochastic_sampling, "
            f"invert_sigmas or guidance_embeds; the checkpoint asks for {name} {dict(config)}"
        )


def _process_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:  # not Linux: the peak is all there is
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    import resource

    return pages * resource.getpagesize() / 2**20
