"""Replica shell of an image model: starts the engine that the settings name and passes its events on."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator

from deployments.contracts.engines import ImageEngine
from deployments.contracts.errors import AtelierError, EngineFailed
from deployments.contracts.messages import ImageEvent, ImageRequest
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_image_engine

logger = logging.getLogger(__name__)


class ImageGenerator:
    """One replica; `serve_app/app.py` wraps it into a deployment."""

    _engine: ImageEngine | None = None

    async def __init__(self, settings: ModelSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        engine = make_image_engine(settings)
        try:
            await engine.start()
        except BaseException:
            await engine.close()  # or a half-loaded model keeps its memory while Serve retries
            raise
        self._engine = engine
        # What Serve calls when the replica stops. On the instance, where Python's own collector does not
        # look for it: that would make a coroutine which nobody awaits.
        self.__del__ = self.close

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

    async def check_health(self) -> None:
        await self._running().check_health()

    def _running(self) -> ImageEngine:
        if self._engine is None:
            raise EngineFailed("The image engine is not running.")
        return self._engine

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
