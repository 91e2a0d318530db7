"""Fixtures for every test: nothing here reaches a model hub."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from serve_app.graph.readiness import State
from tests.local import CHAT, PAINT, Application, serve_locally

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[tuple[str, Application]]]]:
    """Starts an application on the fake engines: `url, application = await start(chat={...})`.

    `states`: model id → what the cluster says of it, "ready" by default.
    """
    async with AsyncExitStack() as stack:

        async def _start(
            chat: dict[str, Any] | None = None,
            paint: dict[str, Any] | None = None,
            ingress: dict[str, Any] | None = None,
            prep: dict[str, Any] | None = None,
            states: dict[str, State] | None = None,
        ) -> tuple[str, Application]:
            models = [{**CHAT, **(chat or {})}, {**PAINT, **(paint or {})}]
            application = Application(models, ingress or {}, prep or {})
            for model in application.models:
                application.states[model.deployment_name] = (states or {}).get(model.id, "ready")
            return await stack.enter_async_context(serve_locally(application)), application

        yield _start


@pytest.fixture
async def url(start: Callable[..., Awaitable[tuple[str, Application]]]) -> str:
    """Base URL of an application on the fake engines."""
    base, _ = await start()
    return base
