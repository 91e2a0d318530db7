"""Ids: ours are unique, and the client's can be read off them."""

from __future__ import annotations

from deployments.contracts.request_ids import client_id, is_named, unique_id


def test_ours_is_unique_and_holds_the_client_s() -> None:
    first, second = unique_id("a-b.c_1"), unique_id("a-b.c_1")
    assert first != second
    assert client_id(first) == client_id(second) == "a-b.c_1"


def test_a_request_is_named_by_either_id_and_nothing_else() -> None:
    ours = unique_id("mine")
    assert is_named(ours, "mine")
    assert is_named(ours, ours)
    for other in ("", "min", "mine-", ours[:-1], unique_id("mine")):
        assert not is_named(ours, other)
