"""A driver of its own for `test_routing.py`: two replicas on real Ray; prints who answered which key."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path

from serve_app.launch import own_environment

KEYS = [f"conversation-{i}" for i in range(24)]


async def main() -> None:
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from deployments.contracts.messages import ChatRequest
    from serve_app.graph.routing import AffinityRouter

    @serve.deployment(
        num_replicas=2,
        max_ongoing_requests=4,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=RequestRouterConfig(request_router_class=AffinityRouter),
    )
    class Who:
        async def chat(self, request: ChatRequest) -> int:
            await asyncio.sleep(request.body.get("seconds", 0))
            return os.getpid()

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Edge:  # the deployment that HTTP reaches has HAProxy for a router
        def __init__(self, who: object) -> None:
            self.who = who

    serve.run(Edge.bind(Who.bind()))
    handle = serve.get_deployment_handle("Who", "default")

    async def ask(key: str, seconds: float = 0) -> int:
        return await handle.chat.remote(ChatRequest("r", {"seconds": seconds}, "chat", key))

    turns = [[await ask(key) for key in KEYS] for _ in range(3)]
    # Four of one key at a time are all that its replica takes; the others must not wait for it.
    crowd = await asyncio.gather(*[ask(KEYS[0], 1.0) for _ in range(8)])
    without = [await ask("") for _ in KEYS]
    print(json.dumps({"turns": turns, "crowd": crowd, "without": without}), flush=True)
    # While this loop, which the handle's router belongs to, still runs.
    await asyncio.to_thread(serve.shutdown)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="atelier-", dir="/tmp"))
    os.environ.update(own_environment(folder))
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    asyncio.run(main())
    ray.shutdown()
