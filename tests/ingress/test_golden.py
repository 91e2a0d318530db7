"""Every row of the older services' tables, and the classic mistakes with the OpenAI API, as golden pairs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.ingress.golden import check, pairs, play
from tests.local import fake_application, serve_locally

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("image_service", "vlm_service", "vlm_rest", "openai")
PAIRS = [pytest.param(pair, id=f"{name}: {pair['name']}") for name in NAMES for pair in pairs(name)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain() -> AsyncIterator[str]:
    """The URL of an application for all pairs that are given nothing."""
    async with serve_locally(fake_application()) as url:
        yield url


@pytest.mark.parametrize("pair", PAIRS)
async def test_pair(plain: str, pair: dict[str, Any]) -> None:
    if "given" not in pair:
        check(await play(plain, pair["ask"]), pair["answer"])
        return
    async with serve_locally(fake_application(**pair["given"])) as url:
        check(await play(url, pair["ask"]), pair["answer"])
