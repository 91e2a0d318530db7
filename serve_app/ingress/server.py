"""The ingress deployment: builds the HTTP floor over handles to the other deployments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from deployments.engines import garbage
from serve_app.graph.catalog import Catalog
from serve_app.graph.handles import (
    ImageGeneratorHandle,
    IngressPeers,
    VisionLanguageHandle,
    deployment_states,
)
from serve_app.graph.operations import Operations
from serve_app.graph.pictures import PreprocessingHandle
from serve_app.graph.readiness import Readiness
from serve_app.graph.token_receiver import Receiver
from serve_app.ingress.application import make_application
from serve_app.ingress.tally import Counted, Tally
from serve_app.settings import AppSettings


@serve.ingress()
class Ingress:
    """One replica of the edge.

    Args:
        settings: the profile.
        preprocessing: handle of the preprocessing deployment.
        models: model id → handle of its deployment.
    """

    def __init__(
        self, settings: AppSettings, preprocessing: DeploymentHandle, models: Mapping[str, DeploymentHandle]
    ) -> None:
        context = serve.get_replica_context()
        app_name = context.app_name
        readiness = Readiness(settings.models, partial(deployment_states, app_name))
        receiver = Receiver(ray.util.get_node_ip_address())
        chat: dict[str, Any] = {}
        images: dict[str, Any] = {}
        for model in settings.models:
            if model.task == "vision_language":
                chat[model.id] = VisionLanguageHandle(models[model.id], readiness.look_now, receiver)
            else:
                images[model.id] = ImageGeneratorHandle(models[model.id], readiness.look_now)
        self._settings = settings.ingress
        pictures = PreprocessingHandle(
            preprocessing, settings.preprocessing, settings.ingress.picture_cache_mb * 2**20
        )
        peers = IngressPeers(partial(serve.get_deployment_handle, context.deployment, app_name))
        self._tally = Tally(peers.tallies)
        self._operations = Operations(Catalog(settings.models), readiness, pictures, chat, images, peers)

    async def cancel_unanswered(self, name: str) -> bool:
        """Called by whichever replica a cancellation arrives at."""
        return self._operations.cancel_unanswered(name)

    async def tally(self) -> Counted:
        """What this replica counted; each asks it of all."""
        return self._tally.own()

    def __serve_build_asgi_app__(self) -> Starlette:
        application = make_application(
            self._operations, self._settings, tally=self._tally, server_echoes_id=True
        )
        garbage.settle()
        return application
