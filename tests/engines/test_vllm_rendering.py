"""Which prompts are made without a thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments.engines.vllm_rendering import SHORT_BYTES, ShortInline, is_short, short

LONG = "a" * SHORT_BYTES


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, True),
        ({"messages": [{"role": "user", "content": LONG}]}, False),
        ({"messages": [], "chat_template": "{% for i in range(10**9) %}{% endfor %}"}, False),
        ({"messages": [object()]}, False),
    ],
)
def test_short_is_what_renders_in_no_time(body: dict[str, object], expected: bool) -> None:
    assert is_short(body) is expected


def test_only_short_work_is_done_at_once() -> None:
    here = threading.get_ident()
    with ThreadPoolExecutor(1) as pool:
        executor = ShortInline(pool)
        assert executor.submit(threading.get_ident).result() != here
        token = short.set(True)
        assert executor.submit(threading.get_ident).result() == here
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 // 0).result()
        short.reset(token)
