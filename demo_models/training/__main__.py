"""Makes both demo checkpoints from nothing: `make demo-models`, or `python -m demo_models.training`.

Every stage is a process of its own that logs to the folder and goes on where it was stopped; a stage that has
written its result is skipped. About four hours on two cores, minutes on a GPU (the same code, by `--scale`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
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


def stages(folder: Path) -> list[Stage]:
    """All of them, in order."""
    tokenizer, rough, vae = folder / "tokenizer", folder / "vae-rough", folder / "vae"

    def logs(name: str) -> tuple[str, str]:
        return "--logs", str(folder / "logs" / name)

    return [
        Stage("tokenizer", (), tokenizer),
        Stage("vae", logs("vae-rough"), rough, (("--minutes", 25),)),
        Stage("vae", ("--init", str(rough), "--decoder-only", *logs("vae")), vae, (("--minutes", 25),)),
        Stage(
            "t2i",
            ("--vae", str(vae), "--tokenizer", str(tokenizer), "--compile", *logs("t2i")),
            folder / "image",
            (("--text-minutes", 10), ("--minutes", 80)),
        ),
        Stage(
            "vlm",
            ("--tokenizer", str(tokenizer), *logs("vlm")),
            folder / "vlm",
            (("--vision-minutes", 10), ("--minutes", 100)),
        ),
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".atelier" / "demo-models")
    parser.add_argument("--scale", type=float, default=1.0, help="on all training times, 0.1 suits a GPU")
    parser.add_argument(
        "--install", action="store_true", help="put the results in place of the committed ones"
    )
    options = parser.parse_args()
    for stage in stages(options.folder):
        if stage.result.exists():
            print(f"{stage.result} is there already", flush=True)
            continue
        subprocess.run(stage.command(options.scale), cwd=ROOT, check=True)
    for name in ("image", "vlm"):
        evaluate = ["--image", "image", "--vlm", "vlm"] if name == "image" else ["--model", "vlm"]
        words = [str(options.folder / word) if not word.startswith("-") else word for word in evaluate]
        module = f"demo_models.training.evaluate_{name}"
        subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, check=True)
        if options.install:
            shutil.copytree(options.folder / name, ROOT / "demo_models" / name, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
