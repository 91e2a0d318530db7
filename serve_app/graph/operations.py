"""The operations: what happens for a request, in the order in which it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from deployments.contracts.errors import TimedOut
from deployments.contracts.messages import (
    ChatRequest,
    ImageEvent,
    ImageQueue,
    ImageQueued,
    ImageRequest,
    ImageSource,
    ImageStep,
    Surface,
)
from deployments.contracts.settings import ModelSettings
from serve_app.graph.affinity import affinity_key
from serve_app.graph.backends import (
    ChatBackend,
    ImageBackend,
    Peers,
    PendingPicture,
    Preprocessor,
    ReplicaLost,
)
from serve_app.graph.catalog import Catalog
from serve_app.graph.readiness import Readiness
from serve_app.graph.unanswered import Unanswered

T = TypeVar("T")


@dataclass(frozen=True)
class ChatCall:
    """What a dialect asks for: a client's body whose image parts have been lifted out into `images`."""

    body: dict[str, Any]
    images: tuple[ImageSource, ...] = ()
    surface: Surface = "chat"
    scope: str = ""
    """Whose request it is: pictures are cached apart for each."""


class Operations:
    """Text and image generation over the deployments.

    Args:
        catalog: the models.
        readiness: which of them are up.
        preprocessing: takes every image first.
        chat: model id → backend.
        images: model id → backend.
        peers: the ingress replicas; None where this is the only one.
    """

    def __init__(
        self,
        catalog: Catalog,
        readiness: Readiness,
        preprocessing: Preprocessor,
        chat: Mapping[str, ChatBackend],
        images: Mapping[str, ImageBackend],
        peers: Peers | None = None,
    ) -> None:
        self.catalog = catalog
        self.readiness = readiness
        self._preprocessing = preprocessing
        self._chat = chat
        self._images = images
        self._peers = peers
        self._unanswered = Unanswered()

    async def chat(self, call: ChatCall, request_id: str, *, timeout_s: float | None = None) -> bytes:
        """A whole answer as JSON of the call's surface, within `timeout_s`.

        Raises:
            AtelierError: whatever kept it from completing.
        """
        model, request, pictures = self._prepare_chat(call, request_id)
        answer = self.readiness.while_up(model, self._chat[model.id].chat(request, pictures))
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            raise _late(timeout_s, "Ask for fewer tokens.") from None

    def stream_chat(
        self, call: ChatCall, request_id: str, *, timeout_s: float | None = None
    ) -> AsyncGenerator[list[bytes], None]:
        """The same as a stream of JSON chunks, several per item where they were ready together.

        Raises:
            AtelierError: at once if the model is not there, later through the stream.
        """
        model, request, pictures = self._prepare_chat(call, request_id)
        chunks = self._chat[model.id].stream_chat(request, pictures)
        stream = self._first_while_up(model, chunks)
        return stream if timeout_s is None else _in_time(stream, timeout_s, "Ask for fewer tokens.")

    def chat_model(self, name: str | None) -> ModelSettings:
        """The chat model of this name, or the first.

        Raises:
            ModelNotFound, InvalidRequest: no such chat model.
        """
        return self.catalog.for_task(name, "vision_language")

    async def gpu_memory_gb(self, model: ModelSettings) -> float:
        """GB in use on the cards of one of a chat model's replicas; 0 for a model without a GPU."""
        return await self._chat[model.id].gpu_memory_gb() if model.gpu_fraction else 0.0

    def _prepare_chat(
        self, call: ChatCall, request_id: str
    ) -> tuple[ModelSettings, ChatRequest, list[PendingPicture]]:
        model = self.chat_model(call.body.get("model"))
        self.readiness.require(model)
        sources = [replace(source, scope=call.scope) for source in call.images]
        pictures = [self._preprocessing.prepare(source) for source in sources]
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

    def generate(
        self,
        model: ModelSettings,
        request: ImageRequest,
        sources: Sequence[ImageSource] = (),
        *,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ImageEvent, None]:
        """Pictures of one prompt, as events.

        Args:
            model: from `image_model`.
            request: what to paint.
            sources: the pictures that `request.edit` speaks of, in its order.
            timeout_s: longest time to the last event, waiting included. The model's own limit holds too.

        Raises:
            AtelierError: at once if the model is not up, later through the stream.
        """
        self.readiness.require(model)
        pictures = [self._preprocessing.prepare(source) for source in sources]
        own = model.generation.timeout_s if model.generation else None
        limits = [limit for limit in (timeout_s, own) if limit is not None]
        stream = self._painted(model, request, pictures)
        return _in_time(stream, min(limits), *_SMALLER) if limits else stream

    async def _painted(
        self, model: ModelSettings, request: ImageRequest, pictures: Sequence[PendingPicture]
    ) -> AsyncGenerator[ImageEvent, None]:
        """The events. If its replica is lost before anything was shown, the request goes to another, once."""
        for last_try in (False, True):
            shown = False
            events = self._images[model.id].generate(request, pictures)
            events = self._unanswered.watch(request.request_id, events)
            try:
                async with aclosing(self._first_while_up(model, events)) as stream:
                    async for event in stream:
                        shown = shown or not isinstance(event, ImageQueued | ImageStep)
                        yield event
                return
            except ReplicaLost:
                if shown or last_try:
                    raise

    async def image_queue(self, model: ModelSettings) -> ImageQueue:
        """What all replicas of an image model paint and what waits for them. Empty if none is up.

        `request_id` in it is ours: `deployments.contracts.request_ids.client_id` gives the client's.
        """
        return await self._images[model.id].queue() if self.readiness.is_ready(model) else ImageQueue()

    async def cancel_image(self, model: ModelSettings | None, name: str) -> bool:
        """Stop painting a request, at its next step at the latest; its own client hears Cancelled.

        Args:
            model: whose request it is; None for any image model.
            name: the client's `x-request-id`, or our id. All requests that it means are cancelled.

        Returns:
            Whether there was one.
        """
        # Those that no replica has answered first: what leaves Serve's queue meanwhile is met at its replica.
        peers = self._peers
        here = await peers.cancel_unanswered(name) if peers else self.cancel_unanswered(name)
        models = [model] if model else [self.catalog.get(model_id) for model_id in self._images]
        backends = [self._images[one.id] for one in models if self.readiness.is_ready(one)]
        answers = await asyncio.gather(*(b.cancel(name) for b in backends), return_exceptions=True)
        if here or True in answers:
            return True
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return False

    def cancel_unanswered(self, name: str) -> bool:
        """The part of `cancel_image` that concerns requests of this ingress in Serve's own queue."""
        return self._unanswered.cancel(name)


_SMALLER = ("Ask for fewer steps, fewer pictures or a smaller size.",)


def _late(seconds: float | None, *fixes: str) -> TimedOut:
    return TimedOut(
        f"The request was not done within {seconds:g} seconds and was stopped.",
        suggested_fix=("Allow more time.", *fixes),
    )


async def _in_time(stream: AsyncGenerator[T, None], seconds: float, *fixes: str) -> AsyncGenerator[T, None]:
    """The stream, which has this long for all of it."""
    end = asyncio.get_running_loop().time() + seconds
    async with aclosing(stream):
        while True:
            try:
                async with asyncio.timeout_at(end) as limit:
                    item = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not limit.expired():
                    raise
                raise _late(seconds, *fixes) from None
            yield item
