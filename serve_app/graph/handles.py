"""Deployment handles: the only place that calls `.remote()`.

A request whose replica dies before it has answered anything is given to another one, once. Later than that
the caller hears of it.

Text goes by value over Serve's gRPC transport. Pictures go by reference through Ray's object store: the
transport takes 4 MiB at most, and the array never passes through the ingress.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.contracts.errors import AtelierError, Overloaded, Unavailable
from deployments.contracts.messages import ChatRequest, ImageEvent, ImageRequest, ImageSource
from serve_app.graph.backends import PendingPicture
from serve_app.graph.pace import Pace
from serve_app.graph.readiness import State


class Line:
    """What is known of the way to one deployment.

    Args:
        on_lost: called when a replica seems to have died.
    """

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self.lost = on_lost
        self.pace = Pace()


class PreprocessingHandle:
    """Calls the `Preprocessing` deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle.options(_by_reference=True)

    def prepare(self, source: ImageSource) -> PendingPicture:
        return self._handle.prepare.remote(source)


class VisionLanguageHandle:
    """Calls one `VisionLanguage` deployment.

    Args:
        handle: of the deployment.
        on_lost: called when a replica seems to have died.
    """

    def __init__(self, handle: DeploymentHandle, on_lost: Callable[[], None]) -> None:
        self._by_value = handle
        self._by_reference = handle.options(_by_reference=True)
        self._line = Line(on_lost)

    def _pick(self, pictures: Sequence[PendingPicture]) -> DeploymentHandle:
        return self._by_reference if pictures else self._by_value

    async def chat(self, request: ChatRequest, pictures: Sequence[PendingPicture]) -> bytes:
        answer: bytes = await _call(self._pick(pictures).chat, (request, *pictures), self._line)
        return answer

    def stream_chat(
        self, request: ChatRequest, pictures: Sequence[PendingPicture]
    ) -> AsyncGenerator[list[bytes], None]:
        handle = self._pick(pictures).options(stream=True)
        return _stream(handle.stream_chat, (request, *pictures), self._line)


class ImageGeneratorHandle:
    """Calls one `ImageGenerator` deployment. Its events carry encoded pictures, so they go by reference."""

    def __init__(self, handle: DeploymentHandle, on_lost: Callable[[], None]) -> None:
        self._handle = handle.options(_by_reference=True, stream=True)
        self._line = Line(on_lost)

    def generate(self, request: ImageRequest) -> AsyncGenerator[ImageEvent, None]:
        return _stream(self._handle.generate, (request,), self._line)


async def _call(method: Any, args: tuple[Any, ...], line: Line) -> Any:
    """The result of a call, which is made again, once, if the replica dies under it."""
    try:
        with line.pace.request():
            try:
                return await method.remote(*args)
            except RayActorError:
                line.lost()
                return await method.remote(*args)
    except Exception as error:
        raise translate(error, line) from error


async def _stream(method: Any, args: tuple[Any, ...], line: Line) -> AsyncGenerator[Any, None]:
    """Items of a streaming call, which is made again, once, if the replica dies before the first."""
    started = finished = False
    response = method.remote(*args)
    try:
        with line.pace.request():
            while not finished:
                try:
                    async for item in response:
                        started = True
                        yield item
                    finished = True
                except RayActorError:
                    if started:
                        raise
                    line.lost()
                    started, response = True, method.remote(*args)
    except Exception as error:
        finished = True
        raise translate(error, line) from error
    finally:
        if not finished:
            # The reader stopped early (a client that went away): free the engine's slot now.
            response.cancel()


def translate(error: BaseException, line: Line) -> Exception:
    """An exception out of a handle as a member of the error tree; an unknown one comes back as it is."""
    known = _find(error)
    if known is not None:
        return known
    if isinstance(error, BackPressureError):
        wait = line.pace.drain_seconds()
        return Overloaded(f"The queue is full. Try again in about {wait:.0f} seconds.", retry_after=wait)
    if isinstance(error, RayError | DeploymentUnavailableError | RayServeException):
        line.lost()
        return Unavailable("The model's replica was lost while it worked on this request.", retry_after=2)
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _find(error: BaseException | None) -> AtelierError | None:
    # Ray wraps what a replica raised, more than once where one deployment's failed result feeds another.
    # Its wrapper is an instance of the original's class too, but without its fields: the cause comes first.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, AtelierError) and not isinstance(error, RayError):
            return error
        error = cause
    return None


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
