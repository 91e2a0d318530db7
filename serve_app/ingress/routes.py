"""The route table: every path that Atelier answers."""

from __future__ import annotations

from starlette.routing import Route

from serve_app.ingress.dialects.anthropic_messages import COUNT_TOKENS, MESSAGES, anthropic_error
from serve_app.ingress.dialects.openai_chat import CHAT
from serve_app.ingress.dialects.openai_completions import COMPLETIONS
from serve_app.ingress.dialects.openai_responses import RESPONSES
from serve_app.ingress.dialects.vllm_tokens import DETOKENIZE, TOKENIZE
from serve_app.ingress.errors import Renderer
from serve_app.ingress.handlers import Handlers

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
}
"""Who writes the errors at and below a path, where it is not OpenAI's API."""


def routes(handlers: Handlers) -> list[Route]:
    """Path, endpoint, methods."""
    return [
        Route("/health", handlers.health, methods=["GET"]),
        Route("/ready", handlers.ready, methods=["GET"]),
        Route("/v1/models", handlers.models, methods=["GET"]),
        Route("/v1/models/{model:path}", handlers.model, methods=["GET"]),
        Route("/v1/images/generations", handlers.generate, methods=["POST"]),
        *(Route(path, handlers.text(dialect), methods=["POST"]) for path, dialect in TEXT.items()),
    ]
