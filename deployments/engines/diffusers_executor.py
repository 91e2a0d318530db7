"""The executor that paints with a Qwen-Image pipeline: what a picture starts from, its steps, its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from diffusers.utils.torch_utils import randn_tensor

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import ImageRequest, ImageUsage, Picture
from deployments.contracts.settings import ModelSettings
from deployments.engines import canvas as canvases
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.diffusers_denoise import Denoiser, Latents
from deployments.engines.diffusers_pipeline import MAX_TEXT_TOKENS, LoadedPipeline
from deployments.engines.diffusers_sources import References, Sources, Start, first_latents, statistics
from deployments.engines.diffusers_texts import TextEncoder, prompts
from deployments.engines.painting import Fault, Job, Painting, Plan, not_finite


class DiffusersExecutor:
    """Implements Executor."""

    def __init__(self, settings: ModelSettings, args: DiffusersArgs) -> None:
        self._settings, self._args = settings, args
        self._pipeline = LoadedPipeline(settings, args)
        self._texts: TextEncoder
        self._sources: Sources
        self._denoiser: Denoiser
        self.step_pixels, self.flight_pixels = args.bounds_for(settings)

    @property
    def broken(self) -> str | None:
        return self._pipeline.broken

    # ------------------------------------------------------------------ life
    def load(self) -> None:
        self._pipeline.load()
        pipe, cell = self._pipeline.pipe, self._pipeline.cell
        self._texts = TextEncoder(pipe, MAX_TEXT_TOKENS)
        self._sources = Sources(pipe)
        self._denoiser = Denoiser(pipe.transformer, self.step_pixels // cell**2)
        self._sigmas = lru_cache(maxsize=256)(self._schedule)
        self._warm_up()

    def free(self) -> None:
        for name in ("_texts", "_sources", "_denoiser", "_sigmas"):
            self.__dict__.pop(name, None)
        self._pipeline.free()

    def _warm_up(self) -> None:
        """Two steps at the default size: kernels are chosen, and a share too small shows now, not later.

        A compiled transformer runs passes of one row and of more in different code, whatever the size. The
        default size may fill a pass with one row: the smallest pictures, unguided and guided, see to both.
        """
        defaults = self._settings.generation
        width, height = map(int, defaults.size.split("x")) if defaults else (256, 256)
        scale = defaults.cfg_scale if defaults else 1.0
        self._try_out(width, height, scale)
        if self._args.compile:
            side = 2 * self._pipeline.cell
            for each in (1.0, 2.0):
                self._try_out(side, side, each)

    def _try_out(self, width: int, height: int, scale: float) -> None:
        # Both texts alike: such rows share a pass at any size.
        request = ImageRequest("warm-up", " ", " ", width, height, 2, scale, seed=0)
        pictures = []
        if self._sources.references:
            grey = np.full((height, width, 3), 127, np.uint8)
            pictures = [Picture(grey, "")]
        start = Start(request, pictures, None, [])
        painting = Painting(Job(request, [], Plan(None, 1, ImageUsage(0, 0)), shared=start), 0, 0, 2)
        self.begin(painting)
        for _ in range(2):
            self.step([painting])
        self.end(painting)

    # ------------------------------------------------------------------ requests
    def plan(self, request: ImageRequest, pictures: Sequence[Picture]) -> Plan:
        cell, width, height = self._pipeline.cell, request.width, request.height
        if width % cell or height % cell or min(width, height) < cell:
            raise InvalidRequest(f"Width and height must be multiples of {cell}.", param="size")
        names = ("prompt", "negative_prompt")
        counts = [self._pipeline.count_tokens(t, p) for t, p in zip(prompts(request), names, strict=False)]
        sources, _ = canvases.split(request, pictures)
        references = self._sources.check(sources)
        tokens = (height // cell) * (width // cell)
        seen = sum(rows * columns for _, rows, columns in references)
        usage = ImageUsage(counts[0], request.n * tokens, seen or (tokens if sources else 0))
        strength = request.edit.strength if request.edit else 1.0
        pixels = width * height + seen * cell**2
        return Plan((width, height, references), pixels, usage, strength)

    @torch.no_grad()
    def begin(self, painting: Painting) -> None:
        job, request = painting.job, painting.job.request
        if job.shared is None:
            sources, mask = canvases.split(request, job.pictures)
            laid = canvases.canvas(request, sources[0], mask) if sources else None
            job.shared = Start(request, sources, laid, [])
        start: Start = job.shared
        references = self._references(start)
        if not start.texts:
            seen = references.seen if references else None
            start.texts.extend(self._texts(prompt, seen) for prompt in prompts(request))
        pipe, cell = self._pipeline.pipe, self._pipeline.cell
        rows, columns = request.height // cell, request.width // cell
        sigmas = list(self._sigmas(painting.steps, rows * columns))
        at = painting.steps - job.plan.steps(painting.steps)
        # A generator on the CPU gives the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(painting.seed % 2**64)
        source = self._sources.encoded(start)
        states = start.texts[0].states
        shape = (1, 1, pipe.transformer.config.in_channels // 4, 2 * rows, 2 * columns)

        def noise() -> torch.Tensor:
            return randn_tensor(shape, generator=generator, device=states.device, dtype=states.dtype)

        x, kept = first_latents(pipe, source, noise, sigmas[at], start.canvas, generator)
        grid = ((1, rows, columns), *(references.grid if references else ()))
        looks = references.latents if references else None
        painting.state = Latents(x, sigmas, at, start.texts, request.cfg_scale, grid, looks, kept)

    def step(self, paintings: Sequence[Painting]) -> list[bool]:
        return self._denoiser.step([painting.state for painting in paintings])

    def preview(self, painting: Painting) -> np.ndarray:
        return self._pixels(painting, painting.state.outlook())

    def end(self, painting: Painting) -> np.ndarray:
        pixels = self._pixels(painting, painting.state.x)
        painting.state = None
        return pixels

    def fault(self, error: Exception, request_ids: Sequence[str]) -> Fault:
        return self._pipeline.fault(error, request_ids)

    def recover(self) -> None:
        self._pipeline.recover()

    def memory_mb(self) -> float:
        return self._pipeline.memory_mb()

    # ------------------------------------------------------------------ parts
    def _references(self, start: Start) -> References | None:
        if start.references is None and self._sources.references:
            start.references = self._sources.look(start.pictures)
        return start.references

    def _schedule(self, steps: int, tokens: int) -> tuple[float, ...]:
        """The sigmas that the pipeline's scheduler would step through, and the final 0."""
        config = self._pipeline.pipe.scheduler.config
        # Stretching a schedule of one step to its terminal divides zero by zero: leave that out.
        changes = {"shift_terminal": None} if steps == 1 else {}
        scheduler = type(self._pipeline.pipe.scheduler).from_config(config, **changes)
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        return tuple(scheduler.sigmas.tolist())

    @torch.no_grad()
    def _pixels(self, painting: Painting, packed: torch.Tensor) -> np.ndarray:
        request, pipe = painting.job.request, self._pipeline.pipe
        latents = pipe._unpack_latents(packed, request.height, request.width, pipe.vae_scale_factor)
        latents = latents.to(pipe.vae.dtype)
        mean, deviation = statistics(pipe, latents)
        image: Any = pipe.vae.decode(latents / (1.0 / deviation) + mean, return_dict=False)[0][:, :, 0]
        if not bool(image.isfinite().all()):
            raise not_finite()
        image = pipe.image_processor.postprocess(image, output_type="pt")[0]
        pixels: np.ndarray = (image.float() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        laid = painting.job.shared.canvas
        return np.ascontiguousarray(laid.keep_rest(pixels) if laid else pixels)
