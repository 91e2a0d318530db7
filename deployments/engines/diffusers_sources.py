"""What an edit starts from, in latents: its source under noise, what is kept of it, references to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import ImageRequest, Picture
from deployments.engines.canvas import Canvas
from deployments.engines.diffusers_denoise import Kept
from deployments.engines.diffusers_texts import Text

MAX_REFERENCES = {"QwenImageEditPipeline": 1, "QwenImageEditPlusPipeline": 16}
"""Pipelines that look at pictures beside the one they paint, and at how many."""


@dataclass(frozen=True)
class References:
    """Pictures that an edit model looks at."""

    latents: torch.Tensor
    """(1, R, C), packed, one after the other."""
    grid: tuple[tuple[int, int, int], ...]
    seen: Any
    """What the text encoder gets: one PIL image, or a list of them."""


@dataclass(eq=False)
class Start:
    """What all pictures of a request start from; filled in as they begin."""

    request: ImageRequest
    pictures: Sequence[Picture]
    canvas: Canvas | None
    texts: list[Text]
    references: References | None = None
    encoded: Any = field(default=None, repr=False)
    """The VAE's distribution over the canvas's latents."""


class Sources:
    """The encoding side of a pipeline's VAE."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._name = type(pipe).__name__
        self.references = MAX_REFERENCES.get(self._name, 0)

    def check(self, sources: Sequence[Picture]) -> tuple[tuple[int, int, int], ...]:
        """The grids of the references. Raises InvalidRequest for more or fewer pictures than it takes."""
        if self.references and not sources:
            raise InvalidRequest("This model edits pictures: send one with the request.", param="image")
        most = self.references or 1
        if len(sources) > most:
            raise InvalidRequest(f"This model takes {most} image(s) at most.", param="image")
        if not self.references:
            return ()
        return tuple(self._grid(*self._size(p)) for p in sources)

    @torch.no_grad()
    def encoded(self, start: Start) -> Any:
        """The distribution of the canvas's latents; None if the picture starts from noise alone."""
        edit, laid = start.request.edit, start.canvas
        if edit is None or laid is None:
            return None
        if self.references and edit.strength >= 1 and laid.repaint is None:
            return None  # the model looks at the source instead
        if start.encoded is None:
            height, width = laid.pixels.shape[:2]
            image = Image.fromarray(laid.pixels)
            pixels = self._pipe.image_processor.preprocess(image, height, width).unsqueeze(2)
            pixels = pixels.to(self._pipe._execution_device, self._pipe.vae.dtype)
            start.encoded = self._pipe.vae.encode(pixels).latent_dist
        return start.encoded

    @torch.no_grad()
    def look(self, pictures: Sequence[Picture]) -> References:
        """Encode the pictures as the pipeline does: at its own area, whatever the size of the result."""
        pipe, packed, grid, seen = self._pipe, [], [], []
        for picture in pictures:
            image = Image.fromarray(picture.pixels)
            width, height = self._size(picture)
            shown = pipe.image_processor.resize(image, *reversed(self._shown_size(picture)))
            # The older pipeline resizes once, for both its readers.
            pixels = pipe.image_processor.preprocess(image if self.references > 1 else shown, height, width)
            pixels = pixels.unsqueeze(2).to(pipe._execution_device, pipe.vae.dtype)
            latents = pipe._encode_vae_image(image=pixels, generator=None)
            packed.append(pipe._pack_latents(latents, 1, latents.shape[1], *latents.shape[3:]))
            grid.append(self._grid(width, height))
            seen.append(shown)
        return References(torch.cat(packed, dim=1), tuple(grid), seen if self.references > 1 else seen[0])

    def _size(self, picture: Picture) -> tuple[int, int]:
        """Width and height at which a reference is encoded."""
        return self._of_area(picture, 1024 * 1024)

    def _shown_size(self, picture: Picture) -> tuple[int, int]:
        """Width and height at which the text encoder sees it."""
        return self._of_area(picture, 384 * 384 if self.references > 1 else 1024 * 1024)

    def _of_area(self, picture: Picture, area: int) -> tuple[int, int]:
        height, width = picture.pixels.shape[:2]
        module = import_module(type(self._pipe).__module__)
        size = module.calculate_dimensions(area, width / height)
        return int(size[0]), int(size[1])

    def _grid(self, width: int, height: int) -> tuple[int, int, int]:
        cell = self._pipe.vae_scale_factor * 2
        return 1, height // cell, width // cell


def statistics(pipe: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the VAE's latents, (1, C, 1, 1, 1)."""
    config = pipe.vae.config
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(like.device, like.dtype)
        for values in (config.latents_mean, config.latents_std)
    )
    return mean, deviation


def first_latents(
    pipe: Any,
    encoded: Any,
    noise: Callable[[], torch.Tensor],
    sigma: float,
    canvas: Canvas | None,
    generator: torch.Generator,
) -> tuple[torch.Tensor, Kept | None]:
    """Packed latents (1, T, C) to start from, and what is to be put back after each step.

    Draws from `generator` in the order of the stock pipelines: the source's latents first, then the noise.
    """

    def pack(latents: torch.Tensor) -> torch.Tensor:
        return pipe._pack_latents(latents, 1, latents.shape[2], *latents.shape[3:])

    if encoded is None:
        return pack(noise()), None
    clean = encoded.sample(generator)
    mean, deviation = statistics(pipe, clean)
    clean, fresh = ((clean - mean) * (1.0 / deviation)).transpose(1, 2), noise()
    level = torch.tensor(sigma, dtype=clean.dtype, device=clean.device)
    x = level * fresh + (1.0 - level) * clean
    if canvas is None or canvas.repaint is None:
        return pack(x), None
    mask = torch.from_numpy(_any_of_cell(canvas.repaint, clean.shape[3:])).to(clean.device, clean.dtype)
    repaint = mask[None, None, None].expand_as(clean)
    return pack(x), Kept(pack(clean), pack(fresh), pack(repaint.contiguous()))


def _any_of_cell(repaint: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The mask in latents: a cell with any pixel to repaint is repainted; pixels are put back at the end."""
    rows, columns = shape
    height, width = repaint.shape
    cells = repaint.reshape(rows, height // rows, columns, width // columns)
    return np.asarray(cells.any(axis=(1, 3)))
