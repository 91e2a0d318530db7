"""The graph against plain `vllm serve`: same checkpoint, same engine arguments, same machine, one run.

Both servers are up at once and take turns, round by round, so that a neighbour's load hits both. The client
for text is vLLM's own (`vllm bench serve`), 64 random tokens in, 64 out; pictures are sent by
`benchmarks/pictures.py`. Prints a table of medians over the rounds and, last, one line of JSON with all
ratios graph / other.

    python -m benchmarks.graph_vs_vllm [--rounds 3] [--profile demo] [--eager] [--only text|pictures] [--ray]

With --ray [MS], the same is done with `ray.serve.llm` then (benchmarks/ray_serve_llm.py), which collects the
tokens of MS milliseconds, by default of its own 50; never are more than two servers up, since idle ones
take time from all.

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

from benchmarks import pictures
from benchmarks.servers import ENVIRONMENT, graph, ray_serve_llm, vllm_serve
from deployments.contracts.settings import ModelSettings
from serve_app.settings import load_settings, profile_path

RUNS = {1: 60, 16: 320, 64: 512}
"""Streams at a time → prompts."""
Seen = dict[str, dict[str, list[float]]]
"""Figure → server → one value a round."""

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
    parser.add_argument("--only", choices=["text", "pictures"], help="half of it")
    parser.add_argument("--ray", type=int, nargs="?", const=50, metavar="MS", help="with ray.serve.llm")
    options = parser.parse_args()
    ratios = {}
    with tempfile.TemporaryDirectory() as name:
        folder, profile = Path(name), profile_path(options.profile)
        profile = profile if options.eager else compiled(profile, folder)
        models = load_settings(profile).models
        model = next(model for model in models if model.task == "vision_language")
        others = {"vllm serve": lambda: vllm_serve(model, folder)}
        if options.ray is not None:
            others["ray.serve.llm"] = lambda: ray_serve_llm(str(profile), folder, options.ray)
        for other, start in others.items():
            with graph(str(profile), folder) as ours, start() as theirs:
                seen = rounds({"graph": ours, other: theirs}, model, folder, options)
            ratios[other] = report(seen, other)
    print(json.dumps(ratios))


def rounds(urls: dict[str, str], model: ModelSettings, folder: Path, options: argparse.Namespace) -> Seen:
    """All that is to be measured of two servers."""
    seen = Seen()
    for number in range(options.rounds):
        if options.only != "pictures":
            text_round(urls, model, folder, seen)
        if options.only != "text":
            picture_round(urls, model, number, seen)
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    return seen


def text_round(urls: dict[str, str], model: ModelSettings, folder: Path, seen: Seen) -> None:
    """Every number of streams once, for each server."""
    for streams, prompts in RUNS.items():
        for who, url in urls.items():
            figures = measure(url, model.id, model.source, streams, prompts, folder)
            for title, key in FIGURES.items():
                seen.setdefault(f"{title} at {streams}", {}).setdefault(who, []).append(figures[key])


def picture_round(urls: dict[str, str], model: ModelSettings, number: int, seen: Seen) -> None:
    """Every kind of picture once, the same ones for each server."""
    for title, run in pictures.RUNS.items():
        for who, url in urls.items():
            rate = pictures.requests_per_second(url, run, model.id, seed=1000 * number)
            seen.setdefault(f"requests/s, {title}", {}).setdefault(who, []).append(rate)


def report(seen: Seen, other: str) -> dict[str, float]:
    """Prints the table; the ratios graph / other."""
    ratios = {}
    width = max(map(len, seen))
    print(f"{'':{width}} {'graph':>14} {other:>13}  ratio")
    for title, by in sorted(seen.items()):
        ours, theirs = statistics.median(by["graph"]), statistics.median(by[other])
        ratios[title] = round(ours / theirs, 3)
        print(f"{title:>{width}} {ours:14.2f} {theirs:13.2f} {ratios[title]:6.2f}", flush=True)
    return ratios


if __name__ == "__main__":
    main()
