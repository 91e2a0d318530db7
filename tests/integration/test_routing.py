"""Requests of one conversation go to one replica of two, and elsewhere when that one is full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from deployments.contracts.settings import ModelSettings

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def answered() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.integration.routing_driver"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray may have last words after it.
    return next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"turns"'))


def test_every_turn_of_a_conversation_meets_the_same_replica(answered: dict[str, Any]) -> None:
    first, *later = answered["turns"]
    assert later == [first] * len(later)


def test_conversations_spread_over_the_replicas(answered: dict[str, Any]) -> None:
    shares = Counter(answered["turns"][0])
    assert len(shares) == 2
    assert min(shares.values()) >= 4


def test_a_crowd_of_one_conversation_overflows_to_the_other_replica(answered: dict[str, Any]) -> None:
    assert len(set(answered["crowd"])) == 2


def test_models_with_several_replicas_are_routed_so() -> None:
    from serve_app.app import _model_deployment
    from serve_app.graph.routing import AffinityRouter

    def router(most: int) -> type:
        model = ModelSettings.model_validate(
            {"id": "m", "task": "vision_language", "engine": "fake", "autoscaling": {"max_replicas": most}}
        )
        deployment = _model_deployment(model)._bound_deployment
        return deployment._deployment_config.request_router_config.get_request_router_class()

    assert router(2) is AffinityRouter
    assert router(1) is not AffinityRouter
