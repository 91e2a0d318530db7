"""Deployment handles: with `line.py` and `pictures.py`, the only place that calls `.remote()`.

Text and small pictures go by value over Serve's gRPC transport, large pictures by reference through Ray's
object store (`pictures.py`). Streamed tokens come over a connection of their own (`token_receiver.py`); the
streaming call that asks for them says how they end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.contracts.errors import Unavailable
from deployments.contracts.messages import ChatRequest, ImageEvent, ImageQueue, ImageRequest
from serve_app.graph.line import Line, call, stream, translate
from serve_app.graph.pictures import PreparedPicture, go_by_value, values
from serve_app.graph.readiness import State
from serve_app.graph.token_receiver import Pushing, Receiver, Ways

BROADCAST_S = 5.0
"""How long every replica has to answer a call that goes to all."""


class VisionLanguageHandle:
    """Calls one `VisionLanguage` deployment.

    Args:
        handle: of the deployment.
        on_lost: called when a replica seems to have died.
        receiver: where its tokens come in.
    """

    def __init__(self, handle: DeploymentHandle, on_lost: Callable[[], None], receiver: Receiver) -> None:
        # Plain pickle: cloudpickle, the default, is for code, and several times slower for a small message.
        self._by_value = handle.options(request_serialization="pickle", response_serialization="pickle")
        self._by_reference = handle.options(_by_reference=True)
        ways = Ways()
        self._push_by_value = Pushing(self._by_value.options(stream=True).push_chat, receiver, ways)
        self._push_by_reference = Pushing(self._by_reference.options(stream=True).push_chat, receiver, ways)
        self._line = Line(on_lost)

    async def chat(self, request: ChatRequest, pictures: Sequence[PreparedPicture]) -> bytes:
        given = await values(pictures)
        handle = self._by_value if go_by_value(request.body, given) else self._by_reference
        answer: bytes = await call(handle.chat, (request, *given), self._line)
        return answer

    def stream_chat(
        self, request: ChatRequest, pictures: Sequence[PreparedPicture]
    ) -> AsyncGenerator[list[bytes], None]:
        return self._stream_pictures(request, pictures) if pictures else self._push(request, ())

    async def _stream_pictures(
        self, request: ChatRequest, pictures: Sequence[PreparedPicture]
    ) -> AsyncGenerator[list[bytes], None]:
        async with aclosing(self._push(request, await values(pictures))) as batches:
            async for batch in batches:
                yield batch

    def _push(self, request: ChatRequest, given: Sequence[Any]) -> AsyncGenerator[list[bytes], None]:
        method = self._push_by_value if go_by_value(request.body, given) else self._push_by_reference
        return stream(method, (request, *given), self._line)

    async def gpu_memory_gb(self) -> float:
        used: float = await call(self._by_value.gpu_memory_gb, (), self._line)
        return used


class ImageGeneratorHandle:
    """Calls one `ImageGenerator` deployment. Pictures go by reference, on the way there and back."""

    def __init__(self, handle: DeploymentHandle, on_lost: Callable[[], None]) -> None:
        self._all = handle
        self._one = handle.options(_by_reference=True, stream=True)
        self._line = Line(on_lost)

    def generate(
        self, request: ImageRequest, pictures: Sequence[PreparedPicture] = ()
    ) -> AsyncGenerator[ImageEvent, None]:
        given = [picture.reference() for picture in pictures]
        return stream(self._one.generate, (request, *given), self._line)

    async def queue(self) -> ImageQueue:
        return merge(await _broadcast(self._all, "queue", (), self._line))

    async def cancel(self, name: str) -> bool:
        return any(await _broadcast(self._all, "cancel", (name,), self._line))


class IngressPeers:
    """Calls every replica of the ingress, this one among them.

    Args:
        handle: makes the ingress's own handle; asked for once there is something to call.
    """

    def __init__(self, handle: Callable[[], DeploymentHandle]) -> None:
        self._handle = handle
        self._line = Line(on_lost=lambda: None)

    async def cancel_unanswered(self, name: str) -> bool:
        return any(await _broadcast(self._handle(), "cancel_unanswered", (name,), self._line))

    async def tallies(self) -> list[Any]:
        """What each has counted."""
        return await _broadcast(self._handle(), "tally", (), self._line)


async def _broadcast(handle: DeploymentHandle, method: str, args: tuple[Any, ...], line: Line) -> list[Any]:
    """What every replica answers. Those that die or shut down under the call are left out; none is no error.

    A cancellation may arrive at another ingress than its request did, so no ingress can know which replica
    serves it: all are asked.
    """
    end = time.monotonic() + BROADCAST_S
    while True:
        try:
            answers = await handle.broadcast(method, *args).results_async(
                timeout_s=BROADCAST_S, return_exceptions=True
            )
            break
        except DeploymentUnavailableError:
            # A handle that was never used learns of its replicas a moment after its first call.
            if handle.running_replicas_populated() or time.monotonic() > end:
                return []
            await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise Unavailable("A replica of the model does not answer.", retry_after=2) from error
    for answer in answers:
        if isinstance(answer, BaseException):
            failure = translate(answer, line)
            if not isinstance(failure, Unavailable):
                raise failure from answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


def merge(queues: Sequence[ImageQueue]) -> ImageQueue:
    """The queues of several replicas as one: they work side by side, so the longest drains last."""
    requests = sorted((r for queue in queues for r in queue.requests), key=lambda r: r.ahead)
    averages = [queue.average_seconds for queue in queues if queue.average_seconds is not None]
    return ImageQueue(
        requests=tuple(requests),
        drain_seconds=max((q.drain_seconds for q in queues if q.drain_seconds is not None), default=None),
        average_seconds=sum(averages) / len(averages) if averages else None,
        memory_mb=sum(queue.memory_mb for queue in queues),
    )


async def deployment_states(app_name: str) -> Mapping[str, State]:
    """Ask the Serve controller. Deployment name → state."""
    status = await asyncio.to_thread(serve.status)
    app = status.applications.get(app_name)
    return {name: _state(overview) for name, overview in app.deployments.items()} if app else {}


def _state(overview: Any) -> State:
    counts = {getattr(state, "value", state): n for state, n in overview.replica_states.items() if n}
    status = getattr(overview.status, "value", overview.status)
    if counts.get("RUNNING"):
        return "ready"
    if status == "DEPLOY_FAILED":
        return "failed"
    # No replica while nothing is being changed: scaled to zero, and a request will start one.
    return "idle" if status == "HEALTHY" and not counts else "loading"
