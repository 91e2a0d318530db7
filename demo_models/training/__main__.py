"""Makes both demo checkpoints from nothing: `make demo-models`, or `python -m demo_models.training`.

Every stage is a process of its own that logs to the folder and goes on where it was stopped; a stage that has
written its result is skipped. The two models are trained side by side, a core each: four to five hours on two
cores, minutes on a GPU (the same code, by `--scale`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stage:
    """One program: its module and arguments, and the folder that it writes when it is done."""

    module: str
    arguments: tuple[str, ...]
    result: Path
    minutes: tuple[tuple[str, float], ...] = ()
    """Options that are minutes, to be scaled."""

    def command(self, scale: float) -> list[str]:
        timed = [word for name, minutes in self.minutes for word in (name, f"{minutes * scale:g}")]
        module = f"demo_models.training.{self.module}"
        return [sys.executable, "-m", module, *self.arguments, "--out", str(self.result), *timed]


def stages(folder: Path) -> list[list[Stage]]:
    """What both models need; then a line of stages for each."""
    tokenizer, rough, vae = folder / "tokenizer", folder / "vae-rough", folder / "vae"

    def logs(name: str) -> tuple[str, str]:
        return "--logs", str(folder / "logs" / name)

    image = [
        Stage("vae", logs("vae-rough"), rough, (("--minutes", 25),)),
        Stage("vae", ("--init", str(rough), "--decoder-only", *logs("vae")), vae, (("--minutes", 25),)),
        Stage(
            "t2i",
            ("--vae", str(vae), "--tokenizer", str(tokenizer), "--compile", *logs("t2i")),
            folder / "image",
            (("--text-minutes", 10), ("--minutes", 200)),
        ),
    ]
    vlm = [
        Stage(
            "vlm",
            ("--tokenizer", str(tokenizer), *logs("vlm")),
            folder / "vlm",
            (("--vision-minutes", 30), ("--minutes", 150)),
        ),
    ]
    return [[Stage("tokenizer", (), tokenizer)], image, vlm]


def run(line: list[Stage], scale: float) -> None:
    """One stage after the other. Raises CalledProcessError if one fails."""
    for stage in line:
        if stage.result.exists():
            print(f"{stage.result} is there already", flush=True)
        else:
            subprocess.run(stage.command(scale), cwd=ROOT, check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".atelier" / "demo-models")
    parser.add_argument("--scale", type=float, default=1.0, help="on all training times, 0.1 suits a GPU")
    parser.add_argument(
        "--install", action="store_true", help="put the results in place of the committed ones"
    )
    options = parser.parse_args()
    first, *lines = stages(options.folder)
    run(first, options.scale)
    with ThreadPoolExecutor(len(lines)) as pool:
        list(pool.map(run, lines, [options.scale] * len(lines)))
    for name in ("image", "vlm"):
        evaluate = ["--image", "image", "--vlm", "vlm"] if name == "image" else ["--model", "vlm"]
        words = [str(options.folder / word) if not word.startswith("-") else word for word in evaluate]
        module = f"demo_models.training.evaluate_{name}"
        subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, check=True)
        if options.install:
            shutil.copytree(options.folder / name, ROOT / "demo_models" / name, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
