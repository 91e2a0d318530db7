"""The route table: every path that Atelier answers."""

from __future__ import annotations

from starlette.routing import Route

from serve_app.ingress.dialects import image_service, vlm_rest, vlm_service
from serve_app.ingress.dialects.anthropic_messages import COUNT_TOKENS, MESSAGES, anthropic_error
from serve_app.ingress.dialects.openai_chat import CHAT
from serve_app.ingress.dialects.openai_completions import COMPLETIONS
from serve_app.ingress.dialects.openai_responses import RESPONSES
from serve_app.ingress.dialects.vllm_tokens import DETOKENIZE, TOKENIZE
from serve_app.ingress.errors import Renderer, openai_error
from serve_app.ingress.handlers import Handlers
from serve_app.ingress.image_handlers import ImageHandlers
from serve_app.ingress.older_handlers import OlderHandlers

TEXT = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
"""The APIs of language models, each by its dialect."""

ERRORS: dict[str, Renderer] = {
    "/v1/messages": anthropic_error,
    "/api": image_service.render_error,
    "/v1/chat": vlm_service.render_error,
    "/v1/chat/completions": openai_error,
    "/v1/health": vlm_service.render_error,
    "/api/v1": vlm_rest.render_error,
}
"""Who writes the errors at and below a path, where it is not OpenAI's API."""


def routes(handlers: Handlers, images: ImageHandlers, older: OlderHandlers) -> list[Route]:
    """Path, endpoint, methods."""
    return [
        Route("/health", handlers.health, methods=["GET"]),
        Route("/ready", handlers.ready, methods=["GET"]),
        Route("/v1/models", handlers.models, methods=["GET"]),
        Route("/v1/models/{model:path}", handlers.model, methods=["GET"]),
        Route("/v1/images/generations", images.generate, methods=["POST"]),
        Route("/v1/images/edits", images.edit, methods=["POST"]),
        Route("/v1/images/queue", images.queue, methods=["GET"]),
        Route("/v1/images/queue/{request_id}", images.queued, methods=["GET"]),
        Route("/v1/images/requests/{request_id}", images.cancel, methods=["DELETE"]),
        *(Route(path, handlers.text(dialect), methods=["POST"]) for path, dialect in TEXT.items()),
        *_older(older),
    ]


def _older(services: OlderHandlers) -> list[Route]:
    """The services that came before."""
    return [
        Route("/api/generate", services.generate, methods=["POST"]),
        Route("/api/queue/status", services.queue_status, methods=["GET"]),
        Route("/api/health", services.image_health, methods=["GET"]),
        Route("/api/metrics", services.metrics, methods=["GET"]),
        Route("/v1/chat", services.chat, methods=["POST"]),
        Route("/v1/chat/stream", services.chat_stream, methods=["POST"]),
        Route("/v1/health", services.vlm_health, methods=["GET"]),
        Route("/api/v1/chat", services.rest_chat, methods=["POST"]),
        Route("/api/v1/health", services.rest_health, methods=["GET"]),
    ]
