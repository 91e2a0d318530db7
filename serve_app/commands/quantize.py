"""`atelier quantize SOURCE DEST`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from deployments.checkpoints.quantize import Job
    from deployments.checkpoints.report import QuantizeReport

console = Console(highlight=False)


def quantize(
    source: Annotated[str, typer.Argument(help="A Qwen-Image folder in diffusers' layout, or a hub id.")],
    dest: Annotated[Path, typer.Argument(help="The new folder. It must not exist yet.")],
    dtype: Annotated[str, typer.Option(help="uint2 to uint8, int2 to int8, or float8_e4m3fn.")] = "uint4",
    svd_rank: Annotated[int, typer.Option(help="Rank of the 16-bit correction; 0 leaves it out.")] = 32,
    group_size: Annotated[int, typer.Option(help="Weights that share a scale; 0 lets SDNQ choose.")] = 0,
    component: Annotated[
        list[str] | None, typer.Option(help="What to quantize; by default transformer and text_encoder.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda. Each gives its own bits, of one quality.")
    ] = "auto",
    threads: Annotated[
        int, typer.Option(min=1, help="With 1 the weights equal those of quantizing at load.")
    ] = 1,
    shard_gb: Annotated[float, typer.Option(min=0.001, help="Size of the files written.")] = 2.0,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst layers to print.")] = 5,
) -> None:
    """Quantize a checkpoint with SDNQ, layer by layer: 40 GB pass through a few GB of memory."""
    try:
        from deployments.checkpoints.devices import choose_device
        from deployments.checkpoints.quantize import prepare
        from deployments.engines.quantization import QuantizeArgs

        svd = {"use_svd": svd_rank != 0} | ({"svd_rank": svd_rank} if svd_rank else {})
        components = {"components": component} if component else {}
        args = QuantizeArgs.model_validate(
            {"weights_dtype": dtype, "group_size": group_size, **svd, **components}
        )
        on = choose_device(device)
        console.print("Reading the checkpoint's structure ...")
        job = prepare(_found(source), dest.resolve(), args)
        report = _run(job, on, threads, round(shard_gb * 2**30))
    except ValidationError as error:
        _fail("; ".join(_explain(problem) for problem in error.errors()))
    except ModuleNotFoundError as error:
        if error.name != "sdnq":
            raise
        _fail("SDNQ is not installed here: pip install -r requirements/sdnq.in (it is GPL-3.0)")
    except (OSError, ValueError) as error:
        _fail(str(error))
    _show(report, dest.resolve(), worst)


def _run(job: Job, device: str, threads: int, shard_bytes: int) -> QuantizeReport:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from deployments.checkpoints.quantize import quantize_folder

    columns = (
        TextColumn("{task.description:<36.36}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=job.bytes_before)

        def step(component: str, name: str, size: int) -> None:
            bar.update(task, description=f"{component} {name}", advance=size)

        return quantize_folder(job, device=device, threads=threads, shard_bytes=shard_bytes, progress=step)


def _show(report: QuantizeReport, dest: Path, worst: int) -> None:
    table = Table("component", "before", "after", "ratio", "layers", "mean error", title=None)
    for part in report.components:
        table.add_row(
            part.name,
            _size(part.bytes_before),
            _size(part.bytes_after),
            f"{part.bytes_after / max(1, part.bytes_before):.3f}",
            str(len(part.layers) or "copied"),
            "-" if part.error is None else f"{part.error:.4f}",
        )
    table.add_row(
        "all",
        _size(report.bytes_before),
        _size(report.bytes_after),
        f"{report.bytes_after / max(1, report.bytes_before):.3f}",
    )
    console.print(table)
    layers = sorted((layer for part in report.components for layer in part.layers), key=lambda x: -x.error)
    for layer in layers[:worst]:
        console.print(f"  {layer.error:.4f}  {layer.name} {'x'.join(map(str, layer.shape))}")
    console.print(f"Written to [bold]{dest}[/bold] in {report.seconds:.0f} s. Serve it as `source: {dest}`.")


def _found(source: str) -> Path:
    from deployments.engines.quantization import resolve_source

    try:
        return resolve_source(source)
    except FileNotFoundError:
        raise
    except OSError as error:
        hub = str(error).splitlines()[0]
        raise OSError(f"{source} is no folder here, and the hub did not give it: {hub}") from None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _explain(problem: Mapping[str, Any]) -> str:
    """A fault of QuantizeArgs in terms of the option that it came from."""
    field = str(problem["loc"][0]) if problem["loc"] else ""
    if field == "weights_dtype":
        return f"--dtype {problem['input']}: use uint2 to uint8, int2 to int8, or float8_e4m3fn"
    option = {"components": "component"}.get(field, field).replace("_", "-")
    return f"--{option} {problem['input']}: {problem['msg']}"


def _fail(message: str) -> None:
    console.print(f"[red]{message}[/red]", soft_wrap=True)
    raise typer.Exit(2)
