"""Training the vision-language model: it learns, it goes on where it stopped, and what it writes loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from demo_models.training import batches, common, scenes, vlm, vlm_heads, vlm_model, vlm_progress
from demo_models.training.batches import Encoder

FOLDER = "demo_models/vlm"


@pytest.fixture
def trainer(tmp_path: Path) -> vlm.Trainer:
    torch.manual_seed(0)
    tokenizer = Qwen2Tokenizer.from_pretrained(FOLDER)
    return vlm.Trainer(vlm_model.new_model(tokenizer), tokenizer, tmp_path / "logs", 1e-3)


def test_cells_know_what_they_cover() -> None:
    star = scenes.Thing("star", "red", 0.25, 0.25, 0.2)
    shape, color, bg, column, row = vlm_heads.cell_targets([scenes.Scene("one", "blue", (star,), {})], (8, 8))
    names = [*vlm_heads.world.SHAPES, "nothing"]
    assert [names[i] for i in shape.view(4, 4)[1].tolist()] == ["star", "star", "nothing", "nothing"]
    assert color.view(4, 4)[3, 3] == -100
    assert set(bg.tolist()) == {list(vlm_heads.world.COLORS).index("blue")}
    assert column.view(4, 4)[2].tolist() == [1, 3, 5, 7]
    assert row.view(4, 4)[:, 0].tolist() == [1, 3, 5, 7]


@pytest.mark.real
def test_both_stages_learn_and_go_on_from_the_checkpoint(
    trainer: vlm.Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vlm, "ROWS", 2)
    monkeypatch.setattr(vlm, "TEXT_ROWS", 2)
    monkeypatch.setattr(vlm, "LOOKS", 4)
    first = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run("see", common.Schedule(1e-3, steps=3, warmup=1), {"see": 1}, every=3)
    schedule = common.Schedule(1e-3, steps=8, warmup=1)
    for step in (trainer.ask, trainer.talk) * 2:
        step(schedule)
    trainer.keep("answer", schedule)
    now = trainer.model.state_dict()
    assert all((now[name] != first[name]).any() for name in now if name.endswith("proj.weight"))

    fresh = vlm.Trainer(vlm_model.new_model(trainer.tokenizer), trainer.tokenizer, tmp_path / "logs", 1e-3)
    stage, state = fresh.resume() or ("", {})
    assert stage == "answer"
    assert state["step"] == 4
    assert fresh.steps == trainer.steps == 7
    assert all(torch.equal(value, now[name]) for name, value in fresh.model.state_dict().items())

    so_far = tmp_path / "logs" / "vlm-so-far"
    exported = Qwen3VLForConditionalGeneration.from_pretrained(so_far)
    assert exported.dtype == torch.bfloat16
    assert (so_far / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_an_answer_is_learnt_by_heart(trainer: vlm.Trainer) -> None:
    row = batches.Row(Encoder(trainer.tokenizer), 100)
    row.branch(batches.turn(batches.START + "hello", "a purple ring"))
    batch, losses = batches.stack([row]), []
    schedule = common.Schedule(3e-3, steps=40, warmup=5)
    for _ in range(25):
        hidden, _ = vlm_model.forward(trainer.model, batch)
        loss = vlm_model.answer_loss(trainer.model, hidden, batch)
        losses.append(loss.item())
        trainer._update(loss, schedule)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.real
def test_progress_tells_right_from_wrong() -> None:
    tokenizer = Qwen2Tokenizer.from_pretrained(FOLDER)
    model = Qwen3VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    trained = vlm_progress.evaluate(vlm_model.prepare(model), Encoder(tokenizer), pictures=16)
    untrained = vlm_progress.evaluate(
        vlm_model.prepare(vlm_model.new_model(tokenizer)), Encoder(tokenizer), pictures=16
    )
    assert set(trained) == set(untrained)
    assert sum(map(sum, trained.values())) > 100
    assert sum(map(sum, untrained.values())) == 0


def test_a_report_names_each_share() -> None:
    assert vlm_progress.report({"a": [True, False], "b": [True]}) == "mean 75.0 | a 50 b 100"


def test_nothing_to_start_from_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["vlm", "--out", "x", "--logs", "y"])
    with pytest.raises(SystemExit):
        vlm.main()
    assert "--tokenizer" in capsys.readouterr().err
