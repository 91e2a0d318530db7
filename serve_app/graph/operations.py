"""The operations: what happens for a request, in the order in which it happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from deployments.contracts.messages import ChatRequest, ImageEvent, ImageRequest, ImageSource, Surface
from deployments.contracts.settings import ModelSettings
from serve_app.graph.affinity import affinity_key
from serve_app.graph.backends import ChatBackend, ImageBackend, PendingPicture, Preprocessor
from serve_app.graph.catalog import Catalog
from serve_app.graph.readiness import Readiness

T = TypeVar("T")


@dataclass(frozen=True)
class ChatCall:
    """What a dialect asks for: a client's body whose image parts have been lifted out into `images`."""

    body: dict[str, Any]
    images: tuple[ImageSource, ...] = ()
    surface: Surface = "chat"


class Operations:
    """Text and image generation over the deployments.

    Args:
        catalog: the models.
        readiness: which of them are up.
        preprocessing: takes every image first.
        chat: model id → backend.
        images: model id → backend.
    """

    def __init__(
        self,
        catalog: Catalog,
        readiness: Readiness,
        preprocessing: Preprocessor,
        chat: Mapping[str, ChatBackend],
        images: Mapping[str, ImageBackend],
    ) -> None:
        self.catalog = catalog
        self.readiness = readiness
        self._preprocessing = preprocessing
        self._chat = chat
        self._images = images

    async def chat(self, call: ChatCall, request_id: str) -> bytes:
        """A whole answer as JSON of the call's surface.

        Raises:
            AtelierError: whatever kept it from completing.
        """
        model, request, pictures = self._prepare_chat(call, request_id)
        answer = self._chat[model.id].chat(request, pictures)
        return await self.readiness.while_up(model, answer)

    def stream_chat(self, call: ChatCall, request_id: str) -> AsyncGenerator[list[bytes], None]:
        """The same as a stream of JSON chunks, several per item where they were ready together.

        Raises:
            AtelierError: at once if the model is not there, later through the stream.
        """
        model, request, pictures = self._prepare_chat(call, request_id)
        return self._first_while_up(model, self._chat[model.id].stream_chat(request, pictures))

    def _prepare_chat(
        self, call: ChatCall, request_id: str
    ) -> tuple[ModelSettings, ChatRequest, list[PendingPicture]]:
        model = self.catalog.for_task(call.body.get("model"), "vision_language")
        self.readiness.require(model)
        pictures = [self._preprocessing.prepare(source) for source in call.images]
        body = {**call.body, "model": self.catalog.served_name(call.body.get("model"), model)}
        request = ChatRequest(request_id, body, call.surface, self._affinity(model, call))
        return model, request, pictures

    @staticmethod
    def _affinity(model: ModelSettings, call: ChatCall) -> str:
        several = model.autoscaling.max_replicas > 1
        return affinity_key(call.body, call.images) if several else ""

    async def _first_while_up(
        self, model: ModelSettings, stream: AsyncGenerator[T, None]
    ) -> AsyncGenerator[T, None]:
        """The stream; until it has begun, it is given up if the model goes down."""
        async with aclosing(stream):
            try:
                yield await self.readiness.while_up(model, anext(stream))
            except StopAsyncIteration:
                return
            async for item in stream:
                yield item

    def image_model(self, name: str | None) -> ModelSettings:
        """The image model of this name: its generation defaults shape the request.

        Raises:
            ModelNotFound, InvalidRequest: no such image model.
        """
        return self.catalog.for_task(name, "image_generation")

    def generate(self, model: ModelSettings, request: ImageRequest) -> AsyncGenerator[ImageEvent, None]:
        """Pictures of one prompt, as events.

        Raises:
            AtelierError: at once if the model is not up, later through the stream.
        """
        self.readiness.require(model)
        return self._first_while_up(model, self._images[model.id].generate(request))
