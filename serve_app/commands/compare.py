"""`atelier compare A B`."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deployments.contracts.errors import AtelierError
from deployments.contracts.settings import GenerationDefaults
from serve_app.settings import PROJECT, load_settings, profile_names, profile_path

if TYPE_CHECKING:
    from deployments.checkpoints.compare import Brush, Comparison

console = Console(highlight=False)
_USUAL = GenerationDefaults(size="1024x1024", max_pixels=1024 * 1024, steps=30, cfg_scale=4)


def compare(
    a: Annotated[str, typer.Argument(help="A Qwen-Image folder, the one to compare with.")],
    b: Annotated[str, typer.Argument(help="Another, for instance its quantized copy.")],
    prompts: Annotated[Path | None, typer.Option(help="A file with one prompt a line.")] = None,
    count: Annotated[int, typer.Option(help="Without a file: how many of the built-in prompts.")] = 12,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT; by default as a profile serves A.")] = "auto",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; likewise.")] = None,
    cfg_scale: Annotated[float | None, typer.Option(min=1, help="Guidance; likewise.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture; each next has one more.")] = 0,
    vlm: Annotated[str | None, typer.Option(help="A vision-language model that describes each.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for comparison.json and contact-sheet.png.")] = Path(
        "comparison"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads on a CPU.")] = None,
) -> None:
    """Paint the same prompts from two checkpoints and say how far apart the pictures are."""
    try:
        from deployments.checkpoints.devices import choose_device
        from deployments.checkpoints.prompts import default_prompts, read_prompts

        asked = read_prompts(prompts) if prompts else default_prompts(count)
        brush = _brush(a, size, steps, cfg_scale, seed, choose_device(device), threads)
        out.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(_compare(a, b, asked, brush, vlm, out))
    except AtelierError as error:
        _fail(error.message)
    except (OSError, ValueError) as error:
        _fail(str(error))
    _show(result)
    console.print(f"Written to [bold]{out}[/bold]: comparison.json, contact-sheet.png")


def _brush(
    source: str,
    size: str,
    steps: int | None,
    cfg_scale: float | None,
    seed: int,
    device: str,
    threads: int | None,
) -> Brush:
    from deployments.checkpoints.compare import Brush

    usual = _as_served(source)
    if not (match := re.fullmatch(r"(\d+)x(\d+)", usual.size if size == "auto" else size)):
        raise ValueError(f"--size {size}: write WIDTHxHEIGHT, as in 1024x1024")
    return Brush(
        width=int(match[1]),
        height=int(match[2]),
        steps=steps or usual.steps,
        cfg_scale=usual.cfg_scale if cfg_scale is None else cfg_scale,
        negative_prompt=usual.negative_prompt,
        seed=seed,
        device=device,
        threads=threads,
    )


def _as_served(source: str) -> GenerationDefaults:
    """What a shipped profile that has this source gives a request that names nothing."""
    for name in profile_names():
        for model in load_settings(profile_path(name)).models:
            same = model.source == source or _folder(model.source) == _folder(source)
            if model.generation is not None and same:
                return model.generation
    return _USUAL


def _folder(source: str) -> Path:
    path = Path(source).expanduser()
    return (path if path.is_dir() else PROJECT / source).resolve()


async def _compare(
    a: str, b: str, prompts: list[str], brush: Brush, vlm: str | None, out: Path
) -> Comparison:
    from deployments.checkpoints.compare import compare as measure
    from deployments.checkpoints.compare import paint, with_descriptions
    from deployments.checkpoints.contact_sheet import write_contact_sheet

    with _progress() as bar:
        task = bar.add_task("", total=len(prompts) * (4 if vlm else 2))

        def step(name: str) -> None:
            bar.update(task, description=name, advance=1)

        first = await paint(a, prompts, brush, step)
        second = await paint(b, prompts, brush, step)
        result = measure(first, second, prompts, brush)
        if vlm:
            pictures = [first.pictures, second.pictures]
            result = with_descriptions(result, *await _describe(vlm, pictures, prompts, brush.device, step))
    result.write(out / "comparison.json")
    write_contact_sheet(out / "contact-sheet.png", result, first, second)
    return result


async def _describe(
    vlm: str, pictures: list[Any], prompts: list[str], device: str, step: Any
) -> list[list[str]]:
    from deployments.checkpoints.judge import Judge, make_judge_engine

    engine = make_judge_engine(vlm, device)
    try:
        await engine.start()
        judge = Judge(engine)
        return [await judge.describe(each, prompts, lambda: step("describing")) for each in pictures]
    finally:
        await engine.close()


def _progress() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<24.24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def _show(result: Comparison) -> None:
    summary = result.summary
    table = Table("", "A", "B", title=f"{result.a} (A) and {result.b} (B)", title_justify="left")
    table.add_row("seconds a picture", f"{result.seconds_a:.2f}", f"{result.seconds_b:.2f}")
    if "agree" in summary:
        table.add_row("prompt's words described", *_percents(summary, "adherence_a", "adherence_b"))
        table.add_row("all of them described", *_percents(summary, "complete_a", "complete_b"))
    console.print(table)
    mean = "all identical" if summary["psnr"] is None else f"PSNR {summary['psnr']:.2f} dB"
    console.print(
        f"{summary['pictures']} pictures, {summary['identical']} identical; mean: {mean}, "
        f"SSIM {summary['ssim']:.4f}"
    )
    if "agree" in summary:
        agree, overlap = _percents(summary, "agree", "overlap")
        console.print(f"Descriptions agree in {agree} of the pictures and share {overlap} of their words")


def _percents(summary: dict[str, Any], *keys: str) -> list[str]:
    return [f"{100 * summary[key]:.1f}%" for key in keys]


def _fail(message: str) -> None:
    console.print(f"[red]{message}[/red]", soft_wrap=True)
    raise typer.Exit(2)
