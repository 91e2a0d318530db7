"""The models by id and alias, and their adapters."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.contracts.errors import InvalidRequest, ModelNotFound
from deployments.contracts.settings import ModelSettings, Task

_DOES = {"vision_language": "chat", "image_generation": "image generation"}


class Catalog:
    """Looks models up by the name a client gave."""

    def __init__(self, models: Sequence[ModelSettings]) -> None:
        self.models = tuple(models)
        self._by_name = {name: model for model in models for name in model.names}

    def get(self, name: str) -> ModelSettings:
        """The model with this id, alias or adapter.

        Raises:
            ModelNotFound: there is none; the message lists those there are.
        """
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(name for model in self.models for name in (model.id, *model.adapters))
            raise ModelNotFound(
                f"The model {name[:100]!r} does not exist. Available models: {known}.", param="model"
            ) from None

    @staticmethod
    def served_name(name: str | None, model: ModelSettings) -> str:
        """What the model's engine is asked for: the model itself, or one of its adapters."""
        return name if name is not None and name in model.adapters else model.id

    def for_task(self, name: str | None, task: Task) -> ModelSettings:
        """The named model, or the first one of the task if the client named none.

        Raises:
            ModelNotFound: no such model, or none at all for this task.
            InvalidRequest: the model is there but does something else.
        """
        able = [model for model in self.models if model.task == task]
        if name is None:
            if able:
                return able[0]
            raise ModelNotFound(f"No model here does {_DOES[task]}.", param="model")
        model = self.get(name)
        if model.task != task:
            known = ", ".join(other.id for other in able) or "none is configured"
            raise InvalidRequest(
                f"The model {model.id!r} does {_DOES[model.task]}, not {_DOES[task]}. "
                f"For {_DOES[task]} use: {known}.",
                param="model",
                code="model_not_supported",
            )
        return model
