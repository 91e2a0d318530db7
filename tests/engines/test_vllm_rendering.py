"""Where the prompt of a short request is made."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments.engines.vllm_rendering import ShortInline, short


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
