"""Profiles: YAML read into frozen settings, with errors that name file, line and key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from deployments.contracts.settings import Frozen, ModelSettings, PreprocessingSettings

PROJECT = Path(__file__).resolve().parent.parent
CONFIGS = PROJECT / "configs"


class SettingsError(ValueError):
    """A profile cannot be used. The message names file, line and key, and what would be right."""


class IngressSettings(Frozen):
    """The HTTP edge."""

    replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(ge=0)] = 0.5
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 512
    max_body_bytes: Annotated[int, Field(gt=0)] = 64 * 1024 * 1024
    max_images: Annotated[int, Field(ge=0)] = 16
    """Images in one chat request."""
    picture_cache_mb: Annotated[int, Field(ge=0)] = 64
    """For small pictures that an ingress replica remembers, so that nobody is asked for them again."""
    max_image_side: Annotated[int, Field(gt=0)] = 4096
    """Longest side in pixels that the VLM REST service takes."""
    chat_timeout_s: Annotated[float, Field(gt=0)] = 300
    """How long an answer of the VLM service and the VLM REST service may take, waiting included."""


class AppSettings(Frozen):
    """One profile: the models and what stands around them."""

    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    ingress: IngressSettings = IngressSettings()

    @model_validator(mode="after")
    def _names_are_unique(self) -> AppSettings:
        seen: dict[str, str] = {}
        for model in self.models:
            for name in model.names:
                if name in seen:
                    raise ValueError(f"the name {name!r} is given to both {seen[name]!r} and {model.id!r}")
                seen[name] = model.id
        return self


def load_settings(path: Path) -> AppSettings:
    """Read and check one profile.

    Raises:
        SettingsError: the file is missing, is not YAML, or holds a wrong key or value.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    if not path.is_file():
        raise SettingsError(f"{path}: no such profile. Profiles here: {', '.join(profile_names())}")
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}:1: a profile is a mapping with the key `models`")
    try:
        settings = AppSettings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(path, tree, error)) from None
    return settings.model_copy(update={"models": tuple(_with_local_source(m) for m in settings.models)})


def profile_names() -> list[str]:
    """The profiles that ship with the project."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def profile_path(name: str) -> Path:
    """A shipped profile by its name, or any file by its path."""
    return Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"


def _with_local_source(model: ModelSettings) -> ModelSettings:
    # Replicas run in other working directories, so a path inside the project is made absolute here.
    def local(source: str) -> str:
        return str(PROJECT / source) if source and (PROJECT / source).exists() else source

    adapters = {name: local(source) for name, source in model.adapters.items()}
    return model.model_copy(update={"source": local(model.source), "adapters": adapters})


def _explain(path: Path, tree: Any, error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = problem["loc"]
        key = ".".join(str(part) for part in where) or "models"
        if problem["type"] == "extra_forbidden":
            what = f"unknown key. {_known_keys(where)}"
        else:
            what = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{path}:{_line(tree, where)}: {key}: {what}")
    return "\n".join(lines)


def _line(tree: Any, where: Sequence[int | str]) -> int:
    """The 1-based line of the deepest part of `where` that stands in the file."""
    line = 0
    for part in where:
        if not hasattr(tree, "lc") or (isinstance(tree, dict) and part not in tree):
            break
        # A sequence keeps (line, column) per item, a mapping (key line, key column, ...) per key.
        position = tree.lc.data.get(part) if tree.lc.data else None
        line = position[0] if position else line
        tree = tree[part]
    return line + 1


def _known_keys(where: Sequence[int | str]) -> str:
    parents = {"models": ModelSettings, "preprocessing": PreprocessingSettings, "ingress": IngressSettings}
    cls: type[Frozen] = AppSettings
    for part in where[:-1]:
        field = cls.model_fields.get(str(part))
        nested: Any = parents.get(str(part)) or (field.annotation if field else None)
        if isinstance(nested, type) and issubclass(nested, Frozen):
            cls = nested
    return f"Known here: {', '.join(cls.model_fields)}"
