"""What a replica shell asks of an engine. Real engines and the fake one pass the same contract tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from deployments.contracts.messages import ChatRequest, ImageEvent, ImageQueue, ImageRequest, Picture


class Engine(Protocol):
    async def start(self) -> None:
        """Load and warm up. Raises whatever the cause is; the replica then fails to start."""

    async def check_health(self) -> None:
        """Return if the engine can serve; raise EngineFailed if it cannot recover by itself."""

    async def close(self) -> None:
        """Free everything, subprocesses included. Safe to call twice and before `start`."""


class ChatEngine(Engine, Protocol):
    async def chat(self, request: ChatRequest, pictures: Sequence[Picture]) -> bytes:
        """The whole answer as JSON of the request's surface.

        Raises AtelierError. Cancelling frees the engine's slot.
        """

    def stream_chat(self, request: ChatRequest, pictures: Sequence[Picture]) -> AsyncGenerator[bytes, None]:
        """One JSON chunk or event of the request's surface per item: no SSE framing, no `[DONE]`.

        Raises AtelierError: before the first item for a request that cannot run, later if the engine
        breaks. Closing the generator frees the engine's slot.
        """


class ImageEngine(Engine, Protocol):
    def generate(
        self, request: ImageRequest, pictures: Sequence[Picture] = ()
    ) -> AsyncGenerator[ImageEvent, None]:
        """Queue positions, steps and previews, each picture as it is done, then the usage.

        `pictures` belong to `request.edit`. Raises AtelierError: Cancelled if `cancel` was called. Closing
        the generator stops the work at its next step.
        """

    async def cancel(self, request_id: str) -> bool:
        """Take a request out at its next step; whether there was one."""

    async def queue(self) -> ImageQueue:
        """What is waiting and being painted now."""
