"""Where requests go when there are several replicas."""

from __future__ import annotations

from collections import Counter

import pytest

from deployments.contracts.messages import ImageSource
from serve_app.graph.affinity import affinity_key, ranked

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "What is a crane?"}
LATER = [{"role": "assistant", "content": "A bird."}, {"role": "user", "content": "And what else?"}]
RED, BLUE = ImageSource(url="data:image/png;base64,AAAA"), ImageSource(data=b"BBBB")


def shown(text: str, *numbers: int) -> dict[str, object]:
    pictures = [{"type": "picture", "picture": number} for number in numbers]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def test_all_turns_of_a_conversation_share_a_key() -> None:
    key = affinity_key({"messages": [SYSTEM, FIRST]}, ())
    assert key == affinity_key({"messages": [SYSTEM, FIRST, *LATER], "temperature": 1}, ())
    assert key != affinity_key({"messages": [SYSTEM, LATER[1]]}, ())
    assert key != affinity_key({"messages": [FIRST]}, ())


def test_a_system_prompt_alone_does_not_bind() -> None:
    questions = [{"role": "user", "content": f"Question {i}"} for i in range(20)]
    assert len({affinity_key({"messages": [SYSTEM, q]}, ()) for q in questions}) == 20


def test_the_same_picture_shares_a_key_whatever_is_asked() -> None:
    keys = {affinity_key({"messages": [SYSTEM, shown(text, 0)]}, (RED,)) for text in ("What?", "Why?")}
    assert len(keys) == 1
    assert affinity_key({"messages": [shown("What?", 0)]}, (BLUE,)) not in keys
    # A picture that comes later does not move the conversation.
    later = {"messages": [FIRST, LATER[0], shown("This?", 0)]}
    assert affinity_key(later, (RED,)) == affinity_key({"messages": [FIRST]}, ())


@pytest.mark.parametrize(
    "body",
    [{"prompt": "a b c"}, {"input": "a b c"}, {"input": [FIRST]}, {"system": "s", "messages": [FIRST]}],
)
def test_every_surface_has_a_key(body: dict[str, object]) -> None:
    assert affinity_key(body, ())
    assert affinity_key(body, ()) == affinity_key({**body, "max_tokens": 3}, ())


@pytest.mark.parametrize(
    "body", [{}, {"messages": 5}, {"messages": ["x"]}, {"messages": [shown("x", 7)]}, {"tokens": [1]}]
)
def test_odd_bodies_do_no_harm(body: dict[str, object]) -> None:
    affinity_key(body, ())


def test_a_key_keeps_its_replica_and_keys_spread() -> None:
    loads = dict.fromkeys("abcd", 0)
    first = {f"key{i}": ranked(f"key{i}", loads)[0] for i in range(400)}
    assert all(ranked(key, dict(reversed(loads.items())))[0] == name for key, name in first.items())
    assert min(Counter(first.values()).values()) > 60
    without = {key: ranked(key, dict.fromkeys("abc", 0))[0] for key in first}
    assert all(without[key] == name for key, name in first.items() if name != "d")


def test_a_busy_replica_is_passed_over_for_the_shortest_queue() -> None:
    name = ranked("key", {"a": 0, "b": 0, "c": 0})[0]
    loads = {"a": 1, "b": 2, "c": 3}
    assert ranked("key", {**loads, name: 4})[0] == name
    busy = {**loads, name: 40}
    assert ranked("key", busy) == sorted(busy, key=lambda other: busy[other])


def test_without_a_key_the_shortest_queue() -> None:
    assert ranked("", {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]
