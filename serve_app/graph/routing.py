"""Serve's request router for models with several replicas: where the caches are, else the shortest queue."""

from __future__ import annotations

from ray.serve.request_router import (
    LocalityMixin,
    MultiplexMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)

from deployments.contracts.messages import ChatRequest
from serve_app.graph.affinity import ranked


class AffinityRouter(LocalityMixin, MultiplexMixin, RequestRouter):
    """Runs in the ingress. A replica that refuses, since its queue is full, is followed by the next."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica a rank, the best first."""
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        lengths = self.replica_queue_len_cache
        loads = {name: lengths.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        args = pending_request.args if pending_request is not None else ()
        key = next((arg.affinity for arg in args if isinstance(arg, ChatRequest)), "")
        return [[replicas[name]] for name in ranked(key, loads)]
