"""The torch side of the diffusers engine: synchronous, all of it runs in the engine's one worker thread."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from deployments.contracts.errors import (
    AtelierError,
    ContextTooLong,
    EngineFailed,
    InvalidRequest,
    OutOfMemory,
)
from deployments.contracts.messages import ImageDone, ImageEvent, ImageRequest, ImageStep, ImageUsage
from deployments.contracts.settings import ModelSettings
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.image_ops import encode
from deployments.engines.quantization import load_pipeline, quantized_components, resolve_source

logger = logging.getLogger(__name__)

MAX_TEXT_TOKENS = 1024  # what the pipeline's encoder keeps of a prompt and its template's end


class Stopped(Exception):
    """Nobody waits for this request any more."""


class PipelineRunner:
    """Loads one pipeline and paints with it, one request at a time."""

    def __init__(self, settings: ModelSettings, args: DiffusersArgs) -> None:
        self._settings = settings
        self._args = args
        self._pipe: Any = None
        self._one_step_scheduler: Any = None
        self.device = args.device_for(settings.gpu_fraction)
        self.broken: str | None = None
        """Why this process cannot paint any more, if so."""

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
        self._pipe = load_pipeline(folder, dtype, self._args.quantize, self.device)
        self._place(quantized=bool(self._args.quantize or quantized_components(folder)))
        self._one_step_scheduler = self._scheduler_for_one_step()
        self._warm_up()

    def free(self) -> None:
        self._pipe = self._one_step_scheduler = None
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
        args, pipe = self._args, self._pipe
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
            pipe.transformer.compile_repeated_blocks(fullgraph=True)

    def _scheduler_for_one_step(self) -> Any:
        """Stretching a schedule of one step to its terminal divides zero by zero: leave that out."""
        scheduler = self._pipe.scheduler
        return type(scheduler).from_config(scheduler.config, shift_terminal=None)

    def _warm_up(self) -> None:
        """Two steps at the default size: kernels are chosen, and a share too small shows now, not later."""
        defaults = self._settings.generation
        width, height = map(int, defaults.size.split("x")) if defaults else (256, 256)
        request = ImageRequest(
            "warm-up", "warm-up", " ", width, height, 2, defaults.cfg_scale if defaults else 1.0, seed=0
        )
        self.run(request, lambda event: None, threading.Event())

    # ------------------------------------------------------------------ requests
    def run(self, request: ImageRequest, emit: Callable[[ImageEvent], None], stop: threading.Event) -> None:
        """Paint all pictures of a request. Raises Stopped or an AtelierError."""
        try:
            return self._run(request, emit, stop)
        except (AtelierError, Stopped):
            self._reset_hooks()
            raise
        except Exception as error:
            failure = self._explain(error, request)
        # Outside of the except block: `error` and the tensors in its frames are gone by now.
        self._reset_hooks()
        self._empty_cache()
        raise failure

    def _run(self, request: ImageRequest, emit: Callable[[ImageEvent], None], stop: threading.Event) -> None:
        tokens = self._check(request)
        for index in range(request.n):
            if stop.is_set():
                raise Stopped
            pixels = self._paint(request, index, emit, stop)
            data = encode(pixels, request.output_format, request.output_compression)
            emit(ImageDone(index, data, request.seed + index, request.steps))
        patch = self._cell()
        latents = (request.height // patch) * (request.width // patch)
        emit(ImageUsage(text_tokens=tokens, image_tokens=request.n * latents))

    def _paint(
        self, request: ImageRequest, index: int, emit: Callable[[ImageEvent], None], stop: threading.Event
    ) -> np.ndarray:
        """One picture, always alone in its batch: its seed then gives the same bits whatever n is."""
        import torch

        def after_step(_pipe: Any, step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if self.device.startswith("cuda"):
                # The host runs ahead of the card; progress and cancellation must not.
                torch.cuda.current_stream().synchronize()
            if step + 1 == request.steps:
                _require_finite(tensors["latents"])
            emit(ImageStep(index, step + 1, request.steps))
            if stop.is_set():
                raise Stopped
            return {}

        usual = self._pipe.scheduler
        if request.steps == 1:
            self._pipe.scheduler = self._one_step_scheduler
        try:
            image = self._pipe(
                prompt=_printable(request.prompt),
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                # A generator on the CPU gives the same noise on every device.
                generator=torch.Generator("cpu").manual_seed((request.seed + index) % 2**64),
                callback_on_step_end=after_step,
                max_sequence_length=MAX_TEXT_TOKENS,
                output_type="pt",
                **_guidance(request),
            ).images[0]
        finally:
            self._pipe.scheduler = usual
        _require_finite(image)
        pixels: np.ndarray = (image.float() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray(pixels)

    def _check(self, request: ImageRequest) -> int:
        """Refuse what the pipeline would silently cut; return the prompt's tokens."""
        cell = self._cell()
        if request.width % cell or request.height % cell or min(request.width, request.height) < cell:
            raise InvalidRequest(f"Width and height must be multiples of {cell}.", param="size")
        count, total = self._count(_printable(request.prompt))
        _, negative = self._count(_printable(request.negative_prompt or " "))
        for used, param in ((total, "prompt"), (negative, "negative_prompt")):
            if used > MAX_TEXT_TOKENS:
                spare = MAX_TEXT_TOKENS - total + count
                raise ContextTooLong(
                    f"The {param.replace('_', ' ')} is too long: this model reads at most {spare} tokens."
                    " Shorten it.",
                    param=param,
                )
        return count

    def _count(self, text: str) -> tuple[int, int]:
        """Tokens of a text alone, and with the end of the template that counts against the window."""
        pipe = self._pipe
        whole = pipe.tokenizer(pipe.prompt_template_encode.format(text)).input_ids
        return len(pipe.tokenizer(text).input_ids), len(whole) - pipe.prompt_template_encode_start_idx

    def _cell(self) -> int:
        """Pixels along the side of one latent token."""
        return int(self._pipe.vae_scale_factor * self._pipe.transformer.config.patch_size)

    # ------------------------------------------------------------------ failures
    def _explain(self, error: Exception, request: ImageRequest) -> EngineFailed:
        import torch

        context = {"request_id": request.request_id}
        text = str(error)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
            logger.error("image request %s: out of memory: %s", request.request_id, text, extra=context)
            return OutOfMemory(
                f"Out of memory while painting {request.width}x{request.height}: ask for a smaller size, "
                "or try again later."
            )
        logger.error("image request %s failed", request.request_id, exc_info=error, extra=context)
        if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in text:
            self.broken = "The GPU context is lost"  # sticky: only a new process helps
        return EngineFailed("The image engine failed on this request.")

    def _reset_hooks(self) -> None:
        """After an aborted call, put offloaded modules back as a finished call would."""
        if self._args.offload != "none" and self._pipe is not None:
            self._pipe.maybe_free_model_hooks()

    def _empty_cache(self) -> None:
        if self.device.startswith("cuda") and self.broken is None:
            import torch

            torch.cuda.empty_cache()


def _guidance(request: ImageRequest) -> dict[str, Any]:
    """Classifier-free guidance runs only above 1 and with a negative prompt, of which a blank is one."""
    if request.cfg_scale <= 1:
        return {"true_cfg_scale": 1.0}
    negative = _printable(request.negative_prompt or " ")
    return {"true_cfg_scale": request.cfg_scale, "negative_prompt": negative}


def _printable(text: str) -> str:
    """Lone surrogates, which JSON can carry, make the tokenizer fail."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _require_finite(tensor: Any) -> None:
    if not bool(tensor.isfinite().all()):
        raise EngineFailed(
            "The picture came out as NaN or infinite numbers: lower cfg_scale or change the steps; if it "
            "persists, the model's dtype does not suit this device (bfloat16 or float32 do).",
            code="image_not_finite",
        )
