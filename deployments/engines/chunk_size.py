"""How many tokens a chunk of a stream carries, so that many fast streams do not pay for each token apart.

Making a chunk, writing it and reading it costs about as much as a small model's token. vLLM can put several
tokens into one (`stream_interval`). How many follows from the load: a lone stream gets each token at once,
and so does every stream of a model whose tokens come more slowly than the spacing, as those of large ones do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SPACING_S = 0.0025
"""What one more open stream adds to the time between two chunks of each."""
SPACING_MAX_S = 0.04
"""No client sees its text in larger steps for this."""
TOKENS_MAX = 16
WEIGHT = 0.02
"""Of one chunk in the running mean of the time per token."""
HALF_LIFE_S = 0.25
"""Of the memory of how many streams were open together. Where clients wait for each other, all streams end at
once and all begin at once, and the first of them would take itself for alone."""
APART_S = 1e-4
"""Chunks closer than this come from one token: its text, its finish reason, the usage."""


class ChunkSize:
    """Watches the streams of one engine.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._streams = 0
        self._others = 0.0
        self._others_at = 0.0
        self._token_s = SPACING_MAX_S

    def tokens(self) -> int:
        """For a stream that begins now, itself not counted yet."""
        spacing = min(self._company() * SPACING_S, SPACING_MAX_S)
        return min(max(int(spacing / self._token_s + 0.25), 1), TOKENS_MAX)

    @contextmanager
    def stream(self, tokens: int) -> Iterator[Callable[[], None]]:
        """Around one stream in chunks of `tokens`; to be called at each chunk after the first token's."""
        self._streams += 1
        last: float | None = None

        def chunk() -> None:
            nonlocal last
            now = self._clock()
            if last is not None and now - last > APART_S:
                self._token_s += WEIGHT * ((now - last) / tokens - self._token_s)
            last = now

        try:
            yield chunk
        finally:
            self._streams -= 1
            self._company()

    def _company(self) -> float:
        """How many streams are open beside one that begins or ends now, or lately were."""
        now = self._clock()
        remembered = self._others * 0.5 ** ((now - self._others_at) / HALF_LIFE_S)
        self._others, self._others_at = max(self._streams, remembered), now
        return self._others
