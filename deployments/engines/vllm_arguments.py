"""Turns a model's settings into vLLM's own parsed arguments, so that a profile reads like `vllm serve`."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from deployments.contracts.settings import ModelSettings

PROJECT = Path(__file__).resolve().parents[2]

OWNED = {
    "model": "it is the model entry's `source`",
    "served-model-name": "it is the model entry's `id` and `aliases`",
    "enable-lora": "it follows from the model entry's `adapters`",
    "lora-modules": "it is the model entry's `adapters`",
    "allowed-local-media-path": "the engine never reads files that a request names",
    "allowed-media-domains": "the engine never fetches; preprocessing does",
    "trust-request-chat-template": "requests never bring their own chat template",
    "disable-log-stats": "no statistics are kept: only the HTTP server of vLLM would show them",
    "trust-request-mm-kwargs": "requests never configure image processing",
}
"""Arguments that follow from elsewhere, and from where."""

CPU_MEMORY = 0.1
"""vLLM refuses to start on a CPU when less than its default share of the machine's memory is free."""
GPU_MEMORY_MAX = 0.95
"""Of a whole card: the CUDA context and torch's own workspace live outside vLLM's share."""


def serve_arguments(settings: ModelSettings) -> Namespace:
    """What `vllm serve` would have parsed. Raises ValueError that names what is wrong in `engine_args`."""
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args

    parser = _parser()
    parsed: Namespace = parser.parse_args(_command_line(settings, parser))
    validate_parsed_serve_args(parsed)
    return parsed


def command_line(settings: ModelSettings) -> list[str]:
    """The words that would follow `vllm serve` for the same engine. Raises as `serve_arguments` does."""
    return _command_line(settings, _parser())


def _parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def _command_line(settings: ModelSettings, parser: Any) -> list[str]:
    where = f"model {settings.id!r}: engine_args"

    def refuse(message: str) -> None:  # argparse would end the process
        raise ValueError(f"{where}: {message}")

    parser.error = refuse
    given = {name.replace("_", "-"): value for name, value in settings.engine_args.items()}
    _check_names(given, parser._option_string_actions, where)
    if settings.gpu_fraction > 0 and "gpu-memory-utilization" in given:
        raise ValueError(f"{where}: gpu-memory-utilization follows from gpu_fraction; set that instead")
    arguments = {**_owned(settings), **given}
    return [word for name, value in arguments.items() for word in _words(name, value, parser)]


def prepare_environment(settings: ModelSettings) -> None:
    """What vLLM takes from the environment only, unless the operator set it."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    names = {name.replace("_", "-") for name in settings.engine_args}
    if settings.gpu_fraction == 0 and "kv-cache-memory-bytes" not in names:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def computes_in_one_thread(settings: ModelSettings, arguments: Namespace) -> bool:
    """Whether the engine's own process computes, on a CPU, in its main thread, which nothing binds to a core.

    vLLM binds the threads of its workers only, and has none with the executor `uni`.
    """
    return (
        settings.gpu_fraction == 0
        and arguments.distributed_executor_backend == "uni"
        and os.environ.get("OMP_NUM_THREADS") == "1"
        and os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") == "auto"
    )


def _owned(settings: ModelSettings) -> dict[str, Any]:
    gpu = min(settings.gpu_fraction, GPU_MEMORY_MAX)
    cards = {"tensor-parallel-size": int(settings.gpu_fraction)} if settings.gpu_fraction > 1 else {}
    adapters: dict[str, Any] = {}
    if settings.adapters:
        named = [{"name": name, "path": checkpoint(path)} for name, path in settings.adapters.items()]
        adapters = {"enable-lora": True, "lora-modules": named}
    return {
        **cards,
        **adapters,
        "model": checkpoint(settings.source),
        "served-model-name": [settings.id, *settings.aliases],
        "gpu-memory-utilization": gpu or CPU_MEMORY,
        # A list that no host is on: an empty one would allow every host.
        "allowed-media-domains": ["none.invalid"],
    }


def checkpoint(source: str) -> str:
    """A path inside the project, if there is one; else the source as it is (absolute, or a hub id)."""
    inside = PROJECT / source
    return str(inside) if inside.exists() else source


def _check_names(given: dict[str, Any], options: dict[str, Any], where: str) -> None:
    for name in given:
        if name in OWNED:
            raise ValueError(f"{where}: {name} cannot be set: {OWNED[name]}")
    # `compilation-config.mode` sets one key of a JSON argument.
    unknown = sorted(name for name in given if f"--{name.split('.')[0]}" not in options)
    if unknown:
        raise ValueError(f"{where}: not an argument of `vllm serve`: {', '.join(unknown)}")


def _words(name: str, value: Any, parser: Any) -> list[str]:
    """One argument as words of a command line."""
    option = f"--{name}"
    if value is None:
        return []
    if isinstance(value, bool):
        if value:
            return [option]
        negative = f"--no-{name}"
        return [negative] if negative in parser._option_string_actions else []
    action = parser._option_string_actions.get(option)
    if isinstance(value, (list, tuple)) and action is not None and action.nargs in ("+", "*"):
        return [option, *(v if isinstance(v, str) else json.dumps(v) for v in value)]
    return [option, value if isinstance(value, str) else json.dumps(value)]
