"""torchvision imports in every process of the environment, and costs those that do not import it nothing."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from deployments.engines import torchvision_cpu


def python(code: str, cwd: Path) -> str:
    """Run code in a fresh interpreter, away from the project's folder; what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_pth_file_of_this_environment_is_current() -> None:
    path = Path(sysconfig.get_path("purelib")) / "atelier_torchvision.pth"
    assert path.read_text() == torchvision_cpu.PTH, "run scripts/setup.sh"


def test_it_is_one_line_that_site_executes() -> None:
    assert torchvision_cpu.PTH.startswith("import ")
    assert torchvision_cpu.PTH.count("\n") == 1


def test_an_interpreter_imports_nothing_for_it_at_start(tmp_path: Path) -> None:
    code = "import sys; print({'torch', 'deployments', 'serve_app'} & set(sys.modules))"
    assert python(code, tmp_path) == "set()"


def test_looking_torchvision_up_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.find_spec('torchvision')\n"
        "print(spec.origin.endswith('__init__.py'), 'torch' in sys.modules)"
    )
    assert python(code, tmp_path) == "True False"


def test_torchvision_and_the_processor_that_needs_it_import(tmp_path: Path) -> None:
    code = (
        "import torchvision, torch\n"
        "from torchvision.transforms.v2 import functional\n"
        "from transformers import Qwen3VLProcessor\n"
        "resized = functional.resize(torch.zeros(3, 8, 8, dtype=torch.uint8), [4, 4])\n"
        "print(tuple(resized.shape), type(torchvision.__loader__).__name__)"
    )
    assert python(code, tmp_path) == "(3, 4, 4) SourceFileLoader"


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_subprocesses_import_it_too(tmp_path: Path, method: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import importlib, multiprocessing\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    child = context.Process(target=importlib.import_module, args=('torchvision',))\n"
        "    child.start(); child.join(); print(child.exitcode)\n"
    )
    assert python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", tmp_path) == "0"


def test_the_operators_are_left_alone_where_the_extension_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torchvision_cpu, "_library", None)
    monkeypatch.setattr(torchvision_cpu, "_extension_loads", lambda path: True)
    assert torchvision_cpu.declare_operators([str(tmp_path)]) is False


def test_the_operators_are_left_alone_beside_a_cuda_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    monkeypatch.setattr(torchvision_cpu, "_library", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert torchvision_cpu.declare_operators([str(tmp_path)]) is False


def test_a_torchvision_without_an_extension_does_not_load_one(tmp_path: Path) -> None:
    assert torchvision_cpu._extension_loads([str(tmp_path)]) is False
