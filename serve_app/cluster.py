"""Asks the Ray cluster which GPUs it has."""

from __future__ import annotations

import subprocess

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve_app.plan import Card


def find_cards() -> list[Card]:
    """Every GPU of every node that is alive. Asks the nodes that have some; empty without a GPU.

    Raises:
        ray.exceptions.RayError: a node did not answer.
    """
    tasks = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("GPU", 0) > 0:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            # No GPU is asked for: the question must not wait for a card that is in use.
            look = ray.remote(num_cpus=0, num_gpus=0)(_look).options(scheduling_strategy=here)
            tasks.append(look.remote(node["NodeID"], int(node["Resources"]["GPU"])))
    return [card for cards in ray.get(tasks) for card in cards]


def _look(node: str, count: int) -> list[Card]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    cards = []
    for line in lines[:count]:
        name, _, mebibytes = line.rpartition(",")
        cards.append(Card(node, name.strip(), int(mebibytes) / 1024))
    return cards
