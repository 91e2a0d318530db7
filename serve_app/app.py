"""The composition root: a profile in, a Serve application out. The only file that knows every floor."""

# No `from __future__ import annotations` here: Serve reads the class of `build`'s argument from it.

import logging
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from deployments.contracts.settings import Autoscaling, ModelSettings
from deployments.image_generator import ImageGenerator
from deployments.preprocessing import Preprocessing
from deployments.vision_language import VisionLanguage
from serve_app.cluster import find_cards
from serve_app.graph.routing import AffinityRouter
from serve_app.ingress.server import Ingress
from serve_app.plan import choose_profile, require_fit
from serve_app.settings import AppSettings, load_settings, profile_path

log = logging.getLogger("ray.serve")

_SHELLS = {"vision_language": VisionLanguage, "image_generation": ImageGenerator}

CONTROL_SLOTS = 64

# One JSON object a line, with the request id as a field. The ingress writes its own line for each request.
_LOGGING = {"encoding": "JSON", "enable_access_log": False}


class AppArgs(BaseModel):
    """`args:` of the application in `serve_config.yaml`."""

    model_config = ConfigDict(extra="forbid")

    profile: str = "auto"
    """`auto`, the name of a file in configs/ without its ending, or the path of a profile."""


def build(args: AppArgs) -> Application:
    """The application of a profile.

    Raises:
        SettingsError: the profile is wrong, or does not fit the cluster.
    """
    cards = find_cards()
    name = args.profile
    if name == "auto":
        name, why = choose_profile(cards)
        log.info("profile auto: %s (%s)", name, why)
    settings = load_settings(profile_path(name))
    require_fit(settings, cards)
    return compose(settings)


def compose(settings: AppSettings) -> Application:
    """Bind every deployment and the ingress over them."""
    models = {model.id: _model_deployment(model) for model in settings.models}
    edge = settings.ingress
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        logging_config=_LOGGING,
        ray_actor_options={"num_cpus": edge.num_cpus},
        autoscaling_config=_between(edge.replicas, edge.max_replicas, edge.max_ongoing_requests / 4),
        max_ongoing_requests=edge.max_ongoing_requests,
    )
    return ingress.bind(settings, _preprocessing(settings), models)


def _preprocessing(settings: AppSettings) -> Application:
    limits = settings.preprocessing
    deployment = serve.deployment(Preprocessing).options(
        name="Preprocessing",
        logging_config=_LOGGING,
        ray_actor_options={"num_cpus": limits.num_cpus},
        autoscaling_config=_between(limits.replicas, limits.max_replicas, ongoing=4),
        max_ongoing_requests=16,
        max_queued_requests=128,
    )
    return deployment.bind(limits)


def _model_deployment(model: ModelSettings) -> Application:
    routed: dict[str, Any] = {}
    if model.task == "vision_language" and model.autoscaling.max_replicas > 1:
        routed["request_router_config"] = RequestRouterConfig(request_router_class=AffinityRouter)
    deployment = serve.deployment(_SHELLS[model.task]).options(
        name=model.deployment_name,
        logging_config=_LOGGING,
        ray_actor_options={
            "num_cpus": model.num_cpus,
            "num_gpus": model.gpu_fraction,
            "runtime_env": {"env_vars": model.env},
        },
        autoscaling_config=_autoscaling(model.autoscaling),
        max_ongoing_requests=_slots(model),
        max_queued_requests=model.max_queued_requests,
        # A picture or a long answer may well take longer than Serve's default of 20 s.
        graceful_shutdown_timeout_s=120,
        health_check_period_s=5,
        **routed,
    )
    return deployment.bind(model)


def _slots(model: ModelSettings) -> int:
    # Calls for the queue and cancellations take slots too, and would wait behind the pictures that they are
    # about. An image replica bounds its queue itself, below this.
    held = model.max_held_requests + CONTROL_SLOTS
    return held if model.task == "image_generation" else model.max_ongoing_requests


def _between(least: int, most: int, ongoing: float) -> AutoscalingConfig:
    settings = {"min_replicas": least, "max_replicas": max(least, most), "target_ongoing_requests": ongoing}
    return _autoscaling(Autoscaling.model_validate(settings))


def _autoscaling(settings: Autoscaling) -> AutoscalingConfig:
    fields: dict[str, Any] = settings.model_dump()
    return AutoscalingConfig(**fields)
