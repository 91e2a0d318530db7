"""Replica shell of an image model: starts the engine that the settings name and passes its events on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from deployments.contracts.engines import ImageEngine
from deployments.contracts.errors import AtelierError, EngineFailed, InvalidImage, InvalidRequest, Overloaded
from deployments.contracts.messages import ImageEdit, ImageEvent, ImageQueue, ImageRequest, Picture
from deployments.contracts.request_ids import is_named
from deployments.contracts.settings import ModelSettings
from deployments.contracts.sizes import is_too_long, within
from deployments.engines.factory import make_image_engine
from deployments.replica import EngineReplica

logger = logging.getLogger(__name__)

MIN_S, UNKNOWN_S, MAX_S = 1.0, 2.0, 120.0
"""Bounds of a Retry-After. openai-python does not retry at all where it is above 120 s."""


class ImageGenerator(EngineReplica[ImageEngine]):
    """One replica; `serve_app/app.py` wraps it into a deployment."""

    # Serve awaits it, and routes here afterwards.
    async def __init__(self, settings: ModelSettings) -> None:  # type: ignore[misc]
        self._settings = settings
        self._held = 0
        await self._start(make_image_engine(settings))

    async def generate(self, request: ImageRequest, *pictures: Picture) -> AsyncGenerator[ImageEvent, None]:
        """The engine's events. Closing or cancelling it stops the engine at its next step.

        Pictures are positional, one by one, so that Ray resolves references to them on its way here.
        """
        await self._require_place()
        self._held += 1
        try:
            if request.edit is not None:
                request = fit_edit(request, request.edit, pictures, self._settings)
            async with aclosing(self._running().generate(request, pictures)) as events:
                async for event in events:
                    yield event
            return
        except AtelierError:
            raise
        except Exception:
            logger.exception(
                "image request %s failed", request.request_id, extra={"request_id": request.request_id}
            )
        finally:
            self._held -= 1
        raise EngineFailed("The image engine failed on this request.")

    async def _require_place(self) -> None:
        """Raises Overloaded, with the time in which the queue should be done, if there is none."""
        if self._held < self._settings.max_held_requests:
            return
        drain = (await self._running().queue()).drain_seconds
        wait = UNKNOWN_S if drain is None else min(max(drain, MIN_S), MAX_S)
        raise Overloaded(f"The queue is full. Try again in about {wait:.0f} seconds.", retry_after=wait)

    async def queue(self) -> ImageQueue:
        """What this replica paints now and what waits for it."""
        return await self._running().queue()

    async def cancel(self, name: str) -> bool:
        """Take out every request that `name` means, the client's id or ours; whether there was one."""
        engine = self._running()
        meant = [r.request_id for r in (await engine.queue()).requests if is_named(r.request_id, name)]
        return any(await asyncio.gather(*(engine.cancel(request_id) for request_id in meant)))


def fit_edit(
    request: ImageRequest, edit: ImageEdit, pictures: Sequence[Picture], settings: ModelSettings
) -> ImageRequest:
    """The request with its canvas, now that the pictures are there: 0x0 becomes the first one's own size.

    Raises:
        InvalidImage: the mask is not as large as the picture, or the picture's aspect is not painted.
        InvalidRequest: the picture does not fit on the canvas where it is placed.
    """
    height, width = pictures[0].pixels.shape[:2]
    if edit.masked and pictures[-1].pixels.shape[:2] != (height, width):
        mask_height, mask_width = pictures[-1].pixels.shape[:2]
        raise InvalidImage(
            f"The mask has {mask_width}x{mask_height} pixels and the image {width}x{height}: both must have "
            "the same size.",
            param="mask",
        )
    if not request.width:
        if is_too_long(width, height):
            raise InvalidImage(
                f"The image is {width}x{height}: longer than 3:1. Give a 'size', or crop it.", param="image"
            )
        assert settings.generation is not None  # kept by ModelSettings
        width, height = within(width, height, settings.generation.max_pixels)
        return replace(request, width=width, height=height)
    if edit.placement is not None:
        left, top = edit.placement
        if left + width > request.width or top + height > request.height:
            raise InvalidRequest(
                f"The image of {width}x{height} pixels at {left},{top} is not within the canvas of "
                f"{request.width}x{request.height}. Move it, reduce it, or ask for a larger 'size'.",
                param="placement",
            )
    return request
