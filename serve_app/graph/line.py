"""A call to a deployment: given to another replica once if its own dies, its errors in our tree.

A request whose replica dies before it has answered anything is given to another one, once. Later than that
the caller hears of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from deployments.contracts.errors import AtelierError, Overloaded
from serve_app.graph.backends import ReplicaLost
from serve_app.graph.pace import Pace


class Line:
    """What is known of the way to one deployment.

    Args:
        on_lost: called when a replica seems to have died.
    """

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self.lost = on_lost
        self.pace = Pace()


async def call(method: Any, args: tuple[Any, ...], line: Line) -> Any:
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


async def stream(method: Any, args: tuple[Any, ...], line: Line) -> AsyncGenerator[Any, None]:
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
        return ReplicaLost("The model's replica was lost while it worked on this request.", retry_after=2)
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
