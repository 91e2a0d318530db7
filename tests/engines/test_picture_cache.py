"""The cache of pictures."""

from __future__ import annotations

import numpy as np

from deployments.contracts.messages import Picture
from deployments.engines.picture_cache import PictureCache


def picture(size: int) -> Picture:
    return Picture(np.zeros((size, 1, 1), np.uint8), "")


def test_the_least_recently_used_goes_first() -> None:
    cache = PictureCache(30)
    for name in "abc":
        cache.put(name, picture(10))
    assert cache.get("a") is not None
    cache.put("d", picture(10))
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.bytes == 30


def test_what_is_too_large_is_not_kept_and_pushes_nothing_out() -> None:
    cache = PictureCache(30)
    cache.put("a", picture(10))
    cache.put("b", picture(31))
    assert cache.get("a") is not None
    assert cache.get("b") is None


def test_one_picture_counts_once() -> None:
    cache = PictureCache(30)
    for _ in range(3):
        cache.put("a", picture(10))
    assert cache.bytes == 10
    cache.put("b", picture(25))
    assert (cache.get("a"), cache.bytes) == (None, 25)
