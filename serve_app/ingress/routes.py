"""The route table: every path that Atelier answers."""

from __future__ import annotations

from starlette.routing import Route

from serve_app.ingress.handlers import Handlers


def routes(handlers: Handlers) -> list[Route]:
    """Path, endpoint, methods."""
    return [
        Route("/health", handlers.health, methods=["GET"]),
        Route("/ready", handlers.ready, methods=["GET"]),
        Route("/v1/models", handlers.models, methods=["GET"]),
        Route("/v1/models/{model:path}", handlers.model, methods=["GET"]),
        Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
        Route("/v1/images/generations", handlers.generate, methods=["POST"]),
    ]
