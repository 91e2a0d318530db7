"""The queue of image requests as JSON. Requests go by their clients' `x-request-id`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployments.contracts.messages import ImageQueue, QueuedImage
from deployments.contracts.request_ids import client_id


def render_queues(queues: Sequence[tuple[str, ImageQueue]]) -> dict[str, Any]:
    """All requests, and a summary per model.

    Args:
        queues: model id and its queue.
    """
    return {
        "object": "list",
        "data": [render_entry(model, entry) for model, queue in queues for entry in queue.requests],
        "models": [_summary(model, queue) for model, queue in queues],
    }


def render_entry(model: str, entry: QueuedImage) -> dict[str, Any]:
    """One request."""
    return {
        "id": client_id(entry.request_id),
        "object": "image.request",
        "model": model,
        "status": "queued" if entry.ahead else "painting",
        "ahead": entry.ahead,
        "step": entry.step,
        "steps": entry.steps,
        "eta_seconds": _rounded(entry.eta_seconds),
        "size": f"{entry.width}x{entry.height}",
        "n": entry.n,
    }


def _summary(model: str, queue: ImageQueue) -> dict[str, Any]:
    waiting = sum(1 for entry in queue.requests if entry.ahead)
    return {
        "model": model,
        "painting": len(queue.requests) - waiting,
        "queued": waiting,
        "drain_seconds": _rounded(queue.drain_seconds),
        "average_seconds": _rounded(queue.average_seconds),
        "memory_mb": round(queue.memory_mb, 1),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
