"""Every row of the older services' tables, and the classic mistakes with the OpenAI API, as golden pairs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ingress.golden import check, pairs, play

NAMES = ("image_service", "vlm_service", "vlm_rest", "openai")
PAIRS = [pytest.param(pair, id=f"{name}: {pair['name']}") for name in NAMES for pair in pairs(name)]


@pytest.mark.parametrize("pair", PAIRS)
async def test_pair(start, pair: dict[str, Any]) -> None:
    url, _ = await start(**pair.get("given", {}))
    check(await play(url, pair["ask"]), pair["answer"])
