"""How many tokens go into a chunk, on a clock of the test's own."""

from __future__ import annotations

from contextlib import ExitStack

from deployments.engines.chunk_size import HALF_LIFE_S, SPACING_MAX_S, TOKENS_MAX, ChunkSize


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.size = ChunkSize(clock=lambda: self.now)

    def measure(self, token_s: float, tokens: int = 1, chunks: int = 400) -> None:
        with self.size.stream(tokens) as chunk:
            for _ in range(chunks):
                chunk()
                self.now += token_s * tokens

    def with_others(self, streams: int) -> int:
        with ExitStack() as stack:
            for _ in range(streams):
                stack.enter_context(self.size.stream(1))
            return self.size.tokens()


def test_a_lone_stream_gets_each_token() -> None:
    world = World()
    world.measure(token_s=0.0002)
    assert world.with_others(0) == 1


def test_many_fast_streams_get_several() -> None:
    world = World()
    world.measure(token_s=0.002)
    assert world.with_others(8) == 10
    assert 10 < world.with_others(64) <= TOKENS_MAX


def test_a_slow_model_gets_each_token() -> None:
    world = World()
    world.measure(token_s=SPACING_MAX_S * 1.1)
    assert world.with_others(1000) == 1


def test_nothing_is_assumed_before_it_was_measured() -> None:
    assert World().with_others(1000) == 1


def test_the_measure_is_per_token_whatever_the_chunks() -> None:
    world = World()
    world.measure(token_s=0.002, tokens=5)
    assert world.with_others(8) == 10


def test_chunks_of_one_token_are_not_counted_as_tokens() -> None:
    world = World()
    for _ in range(400):
        with world.size.stream(1) as chunk:
            for _ in range(3):
                chunk()
                world.now += 0.004
            chunk()
            chunk()  # the finish reason and the usage follow at once
    assert world.with_others(16) == 10


def test_the_first_of_a_new_wave_of_streams_is_not_taken_for_alone() -> None:
    world = World()
    world.measure(token_s=0.002)
    assert world.with_others(8) == 10
    world.now += HALF_LIFE_S / 10
    assert world.size.tokens() >= 9


def test_a_lone_stream_soon_gets_each_token_again() -> None:
    world = World()
    world.measure(token_s=0.002)
    world.with_others(8)
    world.now += 5 * HALF_LIFE_S
    assert world.size.tokens() == 1


def test_one_client_after_another_is_alone() -> None:
    world = World()
    for _ in range(3):
        world.measure(token_s=0.002)
        assert world.size.tokens() == 1
