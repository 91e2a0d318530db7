"""Replica shell of an image model: starts the engine that the settings name and passes its events on."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator

from deployments.contracts.engines import ImageEngine
from deployments.contracts.errors import AtelierError, EngineFailed
from deployments.contracts.messages import ImageEvent, ImageRequest
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_image_engine
from deployments.replica import EngineReplica

logger = logging.getLogger(__name__)


class ImageGenerator(EngineReplica[ImageEngine]):
    """One replica; `serve_app/app.py` wraps it into a deployment."""

    # Serve awaits it, and routes here afterwards.
    async def __init__(self, settings: ModelSettings) -> None:  # type: ignore[misc]
        await self._start(make_image_engine(settings))

    async def generate(self, request: ImageRequest) -> AsyncGenerator[ImageEvent, None]:
        """Steps, pictures, usage. Closing or cancelling it stops the engine at its next step."""
        events = self._running().generate(request)
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
