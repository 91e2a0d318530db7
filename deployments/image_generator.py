"""Replica shell of an image model: starts the engine that the settings name and passes its events on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from deployments.contracts.engines import ImageEngine
from deployments.contracts.errors import AtelierError, EngineFailed
from deployments.contracts.messages import ImageEvent, ImageQueue, ImageRequest, Picture
from deployments.contracts.request_ids import is_named
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_image_engine
from deployments.replica import EngineReplica

logger = logging.getLogger(__name__)


class ImageGenerator(EngineReplica[ImageEngine]):
    """One replica; `serve_app/app.py` wraps it into a deployment."""

    # Serve awaits it, and routes here afterwards.
    async def __init__(self, settings: ModelSettings) -> None:  # type: ignore[misc]
        await self._start(make_image_engine(settings))

    async def generate(self, request: ImageRequest, *pictures: Picture) -> AsyncGenerator[ImageEvent, None]:
        """The engine's events. Closing or cancelling it stops the engine at its next step.

        Pictures are positional, one by one, so that Ray resolves references to them on its way here.
        """
        events = self._running().generate(request, pictures)
        try:
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
            await events.aclose()
        raise EngineFailed("The image engine failed on this request.")

    async def queue(self) -> ImageQueue:
        """What this replica paints now and what waits for it."""
        return await self._running().queue()

    async def cancel(self, name: str) -> bool:
        """Take out every request that `name` means, the client's id or ours; whether there was one."""
        engine = self._running()
        meant = [r.request_id for r in (await engine.queue()).requests if is_named(r.request_id, name)]
        return any(await asyncio.gather(*(engine.cancel(request_id) for request_id in meant)))
