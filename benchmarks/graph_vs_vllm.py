"""The graph against plain `vllm serve`: same checkpoint, same engine arguments, same machine, one run.

Both servers are up at once and take turns, round by round, so that a neighbour's load hits both. The client
is vLLM's own (`vllm bench serve`), 64 random tokens in, 64 out. Prints a table of medians over the rounds
and, last, one line of JSON with the ratios graph / vLLM.

    python -m benchmarks.graph_vs_vllm [--rounds 3] [--profile demo] [--eager]

The demo profile runs its model uncompiled to start soon. An engine that slow would hide what the graph costs,
so it is compiled here, on both sides, unless --eager is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.servers import ENVIRONMENT, graph, vllm_serve
from serve_app.settings import load_settings, profile_path

RUNS = {1: 60, 16: 480}
"""Streams at a time → prompts."""
FIGURES = {"requests/s": "request_throughput", "TTFT ms": "median_ttft_ms", "TPOT ms": "median_tpot_ms"}


def measure(url: str, model: str, tokenizer: str, streams: int, prompts: int, folder: Path) -> dict[str, Any]:
    """One run of vLLM's benchmark client."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.vllm_client", "--backend", "openai-chat", "--base-url", url]
    command += ["--endpoint", "/v1/chat/completions", "--model", model, "--tokenizer", tokenizer]
    command += ["--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "64"]
    command += ["--ignore-eos", "--num-prompts", str(prompts), "--max-concurrency", str(streams)]
    command += ["--num-warmups", "8", "--save-result", "--result-filename", str(result), "--disable-tqdm"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode or not result.exists():
        raise RuntimeError(f"the client failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    figures: dict[str, Any] = json.loads(result.read_text())
    if figures["completed"] != prompts:
        raise RuntimeError(f"{prompts - figures['completed']} of {prompts} requests failed at {url}")
    return figures


def compiled(profile: Path, folder: Path) -> Path:
    """The same profile with `enforce-eager` taken out of every model."""
    yaml = YAML()
    tree = yaml.load(profile.read_text())
    for entry in tree["models"]:
        if entry["engine_args"].pop("enforce-eager", False):
            # vLLM 0.32's ahead-of-time cache fails to load on CPUs and compiles again at each start.
            entry.setdefault("env", {})["VLLM_USE_AOT_COMPILE"] = "0"
    copy = folder / "compiled.yaml"
    yaml.dump(tree, copy)
    return copy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--eager", action="store_true", help="as the profile says, without compiling")
    options = parser.parse_args()
    seen: dict[tuple[str, int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, profile = Path(name), profile_path(options.profile)
        profile = profile if options.eager else compiled(profile, folder)
        models = load_settings(profile).models
        model = next(model for model in models if model.task == "vision_language")
        with graph(str(profile), folder) as ours, vllm_serve(model, folder) as theirs:
            for number in range(options.rounds):
                for streams, prompts in RUNS.items():
                    for who, url in (("graph", ours), ("vllm", theirs)):
                        figures = measure(url, model.id, model.source, streams, prompts, folder)
                        for title, key in FIGURES.items():
                            seen.setdefault((title, streams, who), []).append(figures[key])
                print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    report(seen)


def report(seen: dict[tuple[str, int, str], list[float]]) -> None:
    """The table and the line of JSON."""
    ratios = {}
    print(f"{'':>24} {'graph':>9} {'vllm serve':>11} {'ratio':>7}")
    for title in FIGURES:
        for streams in RUNS:
            ours = statistics.median(seen[title, streams, "graph"])
            theirs = statistics.median(seen[title, streams, "vllm"])
            ratios[f"{title} at {streams}"] = round(ours / theirs, 3)
            print(f"{title + f' at {streams}':>24} {ours:9.2f} {theirs:11.2f} {ours / theirs:7.2f}")
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
