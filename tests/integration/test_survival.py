"""What the graph survives: a killed replica, clients that go away."""

from __future__ import annotations

import signal

import httpx
import openai
import psutil
import pytest

from tests.integration.conftest import Graph, eventually

pytestmark = pytest.mark.real


def engine_processes(graph: Graph) -> list[psutil.Process]:
    """Everything below the VLM replica: its EngineCore, workers and trackers."""
    return [child for replica in vlm_replicas(graph) for child in replica.children(recursive=True)]


def vlm_replicas(graph: Graph) -> list[psutil.Process]:
    return [
        p for p in graph.processes("ServeReplica", "VisionLanguage") if p.status() != psutil.STATUS_ZOMBIE
    ]


def test_killed_vlm_replica_leaves_no_engine_and_the_graph_serves_again(graph: Graph) -> None:
    (replica,) = vlm_replicas(graph)
    engines = engine_processes(graph)
    assert any("EngineCore" in " ".join(p.cmdline()) or "EngineCore" in p.name() for p in engines)
    replica.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([replica, *engines], timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]

    statuses: set[int] = set()

    def answers() -> bool:
        try:
            graph.client().chat.completions.create(
                model="qwen3-vl", messages=[{"role": "user", "content": "Hello!"}]
            )
        except openai.APIStatusError as error:
            statuses.add(error.status_code)
            return False
        return True

    eventually(answers, 120)
    assert statuses <= {503}
    eventually(lambda: httpx.get(f"{graph.url}/ready").status_code == 200, 30)


def test_client_that_leaves_a_stream_does_not_harm_the_next(graph: Graph) -> None:
    for _ in range(5):
        stream = graph.client().chat.completions.create(
            model="qwen3-vl",
            messages=[{"role": "user", "content": "Hello!"}],
            stream=True,
            extra_body={"ignore_eos": True, "max_tokens": 1500},
        )
        next(iter(stream))
        stream.close()
    answer = graph.client().chat.completions.create(
        model="qwen3-vl", messages=[{"role": "user", "content": "Hello!"}]
    )
    assert answer.choices[0].message.content


def test_client_that_leaves_while_painting_does_not_harm_the_next(graph: Graph) -> None:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{graph.url}/v1/images/generations",
            json={"prompt": "a red circle", "n": 10, "num_inference_steps": 100},
            timeout=1,
        )
    # Ten pictures of a hundred steps take minutes here; one of four steps is soon done once they are gone.
    answer = httpx.post(
        f"{graph.url}/v1/images/generations",
        json={"prompt": "a red circle", "num_inference_steps": 4},
        timeout=30,
    )
    assert answer.status_code == 200
