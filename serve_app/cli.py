"""The `atelier` command."""

from __future__ import annotations

import http.client
import json
import shlex
import signal
import threading
import time
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serve_app.commands.compare import compare
from serve_app.commands.quantize import quantize
from serve_app.launch import APP_NAME, PortInUse, fast_path, local_cluster, require_free
from serve_app.settings import AppSettings, SettingsError, load_settings, profile_names, profile_path

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Atelier: one server that sees and paints."
)
console = Console(highlight=False)


@app.command()
def serve(
    profile: Annotated[str, typer.Option(help="auto, a profile's name, or a file.")] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    verbose: Annotated[bool, typer.Option(help="Print the replicas' logs too.")] = False,
) -> None:
    """Start Ray and the whole graph on this machine; Ctrl-C stops it."""
    try:
        require_free(host, port)
        _serve(profile, host, port, verbose)
    except (SettingsError, PortInUse) as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(2) from None


def _serve(profile: str, host: str, port: int, verbose: bool) -> None:
    started = time.monotonic()
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    console.print("Starting Ray and Serve ...")
    try:
        with local_cluster(host, port, log_to_driver=verbose):
            from ray import serve as ray_serve

            from serve_app.app import AppArgs, build

            # Ray takes this signal for itself when it starts; it must take the same way out as Ctrl-C.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            application = build(AppArgs(profile=profile))
            reporter = threading.Thread(target=_report, args=(url, started), daemon=True)
            reporter.start()
            ray_serve.run(application, name=APP_NAME, route_prefix="/")
            reporter.join(timeout=30)
            _welcome(url, time.monotonic() - started)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Stopped.")


def _report(url: str, started: float) -> None:
    """Say when each model gets ready."""
    said: set[str] = set()
    while True:
        answer = _get(f"{url}/ready")
        states: dict[str, str] = answer.get("models", {})
        for model, state in states.items():
            if model not in said and state in ("ready", "idle"):
                said.add(model)
                console.print(f"  {model}: {state} after {time.monotonic() - started:.0f} s")
        if states and len(said) == len(states):
            return
        time.sleep(0.5)


def _get(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as error:
        try:
            return dict(json.load(error))
        except (OSError, ValueError, http.client.HTTPException):
            return {}
    except (OSError, ValueError, http.client.HTTPException):  # a server that stops breaks off in mid-answer
        return {}


def _welcome(url: str, seconds: float) -> None:
    models = _get(f"{url}/v1/models").get("data", [])
    names = ", ".join(f"{model['id']} ({model['task'].replace('_', ' ')})" for model in models)
    chat = next((m["id"] for m in models if m["task"] == "vision_language"), "")
    console.print(
        f"\n[bold green]Atelier is ready[/bold green] after {seconds:.0f} s at [bold]{url}/v1[/bold]"
    )
    console.print(f"Models: {names}\nTry it:\n", soft_wrap=True)
    console.print(
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d "
        f'\'{{"model": "{chat}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\'\n',
        soft_wrap=True,
    )


@app.command()
def env() -> None:
    """Print what a cluster's nodes need before `ray start`: eval "$(atelier env)"."""
    for name, value in fast_path().items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def plan(
    profile: Annotated[str, typer.Argument(help="A profile's name or file; all that ship if left out.")] = "",
) -> None:
    """Show who takes which share of which card, and the replicas that autoscaling may add."""
    try:
        for name in [profile] if profile else profile_names():
            _print_plan(name, load_settings(profile_path(name)))
    except SettingsError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(2) from None


def _print_plan(name: str, settings: AppSettings) -> None:
    from serve_app.plan import placement

    table = Table(title=f"{name}: {len(placement(settings))} GPU(s) at the least", title_justify="left")
    for column in ("model", "engine", "GPU share", "replicas", "card"):
        table.add_column(column)
    cards = placement(settings)
    for model in settings.models:
        on = [str(i) for i, card in enumerate(cards, 1) if any(owner == model.id for owner, _ in card)]
        scaling = model.autoscaling
        table.add_row(
            model.id,
            model.engine,
            f"{model.gpu_fraction:g}" if model.gpu_fraction else "CPU",
            f"{scaling.min_replicas} to {scaling.max_replicas}",
            ", ".join(on) or "-",
        )
    console.print(table)


app.command()(quantize)
app.command()(compare)

if __name__ == "__main__":
    app()
