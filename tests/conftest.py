"""Fixtures for every test: nothing here reaches a model hub."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.local import Application, fake_application, serve_locally

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[tuple[str, Application]]]]:
    """Starts an application on the fake engines: `url, application = await start(chat={...})`."""
    async with AsyncExitStack() as stack:

        async def _start(**given: Any) -> tuple[str, Application]:
            application = fake_application(**given)
            return await stack.enter_async_context(serve_locally(application)), application

        yield _start


@pytest.fixture
async def url(start: Callable[..., Awaitable[tuple[str, Application]]]) -> str:
    """Base URL of an application on the fake engines."""
    base, _ = await start()
    return base
