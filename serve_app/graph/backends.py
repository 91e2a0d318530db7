"""What an operation needs of the deployments, without saying how they are reached."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from deployments.contracts.errors import Unavailable
from deployments.contracts.messages import ChatRequest, ImageEvent, ImageQueue, ImageRequest, ImageSource


class ReplicaLost(Unavailable):
    """A replica died under a request, or could not be reached any more."""


PendingPicture = Any
"""A picture on its way: what `Preprocessor.prepare` returned. Only the backend that takes it resolves it."""


class Preprocessor(Protocol):
    def prepare(self, source: ImageSource) -> PendingPicture:
        """The image as a picture to come; returns at once. A bad image surfaces where the picture is used."""


class ChatBackend(Protocol):
    async def chat(self, request: ChatRequest, pictures: Sequence[PendingPicture]) -> bytes:
        """The whole answer as JSON of the request's surface."""

    def stream_chat(
        self, request: ChatRequest, pictures: Sequence[PendingPicture]
    ) -> AsyncGenerator[list[bytes], None]:
        """Chunks or events as JSON, as many per item as were ready together."""

    async def gpu_memory_gb(self) -> float:
        """GB in use on the cards of one replica."""


class ImageBackend(Protocol):
    def generate(
        self, request: ImageRequest, pictures: Sequence[PendingPicture] = ()
    ) -> AsyncGenerator[ImageEvent, None]:
        """Queue positions, steps, previews, pictures, usage."""

    async def queue(self) -> ImageQueue:
        """What every replica paints now and what waits for it; `ahead` counts within a replica."""

    async def cancel(self, name: str) -> bool:
        """Take out the requests that `name` means on any replica, the client's id or ours."""


class Peers(Protocol):
    async def cancel_unanswered(self, name: str) -> bool:
        """Give up the requests that `name` means and that stand in Serve's queue at any ingress."""
