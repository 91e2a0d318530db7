from __future__ import annotations

from pathlib import Path

import pytest

from deployments.checkpoints.prompts import default_prompts, read_prompts


def test_default_prompts_are_the_same_each_time_and_all_different() -> None:
    many = default_prompts(810)
    assert len(set(many)) == 810
    assert default_prompts(100) == default_prompts(100)
    assert all(prompt.split()[0] in ("a", "an") and prompt.endswith("background") for prompt in many)
    assert not any(prompt.split()[1] == prompt.split()[-2] for prompt in many)  # visible on its ground


@pytest.mark.parametrize("count", [0, 811])
def test_more_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 810"):
        default_prompts(count)


def test_a_file_has_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# ours\na fox\n\n  红色圆形 \n", "utf-8")
    assert read_prompts(path) == ["a fox", "红色圆形"]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n# nothing\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(path)
