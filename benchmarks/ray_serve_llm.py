"""`ray.serve.llm` with one model of a profile, to be compared with: same checkpoint, same engine arguments.

It gets the Serve flags that `atelier serve` sets, HAProxy among them. Needs pyarrow, which Atelier does not:
`pip install pyarrow`.

    python -m benchmarks.ray_serve_llm PROFILE PORT COLLECT_MS

It collects tokens for COLLECT_MS milliseconds before it sends them, by default 50.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from deployments.engines.vllm_arguments import checkpoint
from serve_app.launch import own_environment
from serve_app.settings import load_settings


def main(profile: Path, port: int, collect_ms: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    models = load_settings(profile).models
    model = next(model for model in models if model.task == "vision_language")
    with tempfile.TemporaryDirectory(prefix="llm-", dir="/tmp") as folder:
        for name, value in own_environment(Path(folder)).items():
            os.environ.setdefault(name, value)
        import ray
        from ray import serve
        from ray.serve.llm import LLMConfig, build_openai_app

        ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR")
        config = LLMConfig(
            model_loading_config={"model_id": model.id, "model_source": checkpoint(model.source)},
            accelerator_config={"kind": "cpu"},
            placement_group_config={"bundles": [{"CPU": 1}]},
            engine_kwargs={name.replace("-", "_"): value for name, value in model.engine_args.items()},
            deployment_config={
                "autoscaling_config": {"min_replicas": 1, "max_replicas": 1},
                "max_ongoing_requests": model.max_ongoing_requests,
            },
            runtime_env={"env_vars": {**model.env, "HF_HUB_OFFLINE": "1"}},
            experimental_configs={"stream_batching_interval_ms": collect_ms},
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        over = threading.Event()
        try:
            serve.run(build_openai_app({"llm_configs": [config]}))
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: over.set())
            over.wait()
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
