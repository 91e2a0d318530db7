"""Packed rows: each branch is to the model what the same conversation is on its own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from demo_models.training import batches, chat, scenes, vlm_model
from demo_models.training.batches import Encoder, Row

FOLDER = "demo_models/vlm"


@pytest.fixture(scope="module")
def encode() -> Encoder:
    return Encoder(Qwen2Tokenizer.from_pretrained(FOLDER))


def test_a_full_row_takes_no_more(encode: Encoder) -> None:
    row = Row(encode, 30)
    assert row.branch(batches.turn("hi", "hello"))
    assert not row.branch(batches.turn("hi " * 30, "hello"))
    assert max(row.groups) == 1


def test_only_answers_count_and_long_ones_no_more_per_token(encode: Encoder) -> None:
    row = Row(encode, 1000)
    row.branch(batches.turn("count", "one"))
    row.branch(batches.turn("count", "one two three four five six seven eight"))
    counted = [i for i, weight in enumerate(row.weights) if weight]
    text = "".join(encode._tokenizer.decode(row.ids[i]) for i in counted)
    assert text == "one<|im_end|>one two three four five six seven eight<|im_end|>"
    assert row.weights[counted[0]] > row.weights[counted[-1]]


def test_patches_are_those_of_the_image_processor() -> None:
    processor = Qwen3VLProcessor.from_pretrained(FOLDER).image_processor
    rng = random.Random(0)
    image = scenes.draw(scenes.sample(rng), (192, 96), rng)
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    patches, grid = batches.patchify(pixels)
    expected = processor(image, return_tensors="pt")
    assert (1, *grid) == tuple(expected["image_grid_thw"][0].tolist())
    assert torch.allclose(patches, expected["pixel_values"], atol=0.02)


def test_a_branch_gives_what_the_conversation_alone_gives(encode: Encoder) -> None:
    """Against transformers' own forward pass: its positions, its mask, its attention."""
    torch.manual_seed(0)
    rng = random.Random(1)
    usual = Qwen3VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    packed = Qwen3VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    vlm_model.prepare(packed)
    processor = Qwen3VLProcessor.from_pretrained(FOLDER)
    image = scenes.draw(scenes.sample(rng), (192, 128), rng)
    turns = [
        ("What do you see?", "A red star."),
        ("背景是什么颜色？", "背景是白色的。"),
        ("Count the shapes.", "Two."),
    ]
    row = Row(encode, 1000)
    row.share(chat.system("Be brief.") + batches.START + "<|vision_start|>")
    row.share_picture(4, 6)
    row.share("<|vision_end|>")
    for turn in turns:
        row.branch(batches.turn(*turn))
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    batch = batches.with_pictures(batches.stack([row]), [], [pixels])
    with torch.no_grad():
        hidden, _ = vlm_model.forward(packed, batch)
        logits = packed.lm_head(hidden[0])
        for group, (asked, answer) in enumerate(turns, 1):
            content = [{"type": "image", "image": image}, {"type": "text", "text": asked}]
            messages = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": content},
                {"role": "assistant", "content": answer},
            ]
            alone = processor.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_tensors="pt"
            )
            here = (batch.groups[0] == group).nonzero()[:, 0]
            ids = alone["input_ids"][0, -len(here) - 1 : -1]  # the template ends with a line break
            assert ids.tolist() == batch.ids[0, here].tolist()
            expected = usual(**alone).logits[0, -len(here) - 1 : -1]
            assert torch.allclose(logits[here], expected, atol=0.05, rtol=0.01)


def test_batches_are_of_equal_rows_with_a_picture_each(encode: Encoder) -> None:
    batch = batches.picture_batch(encode, random.Random(2), 3)
    rows, columns = batch.grid
    assert batch.patches is not None
    assert len(batch.patches) == 3 * rows * columns
    assert (batch.ids == encode.image).sum().item() == 3 * rows * columns / 4
    assert batch.positions.shape == (3, *batch.ids.shape)
    assert (batch.groups.max(1).values >= 1).all()


def test_text_rows_never_show_an_answer_to_a_neighbour(encode: Encoder) -> None:
    batch = batches.text_batch(encode, random.Random(3), 4)
    config = Qwen3VLForConditionalGeneration.from_pretrained(FOLDER).config.text_config
    mask = vlm_model.attention_mask(batch.groups, config)[:, 0, : batch.ids.shape[1]]
    branch = batch.groups[0]
    seen = mask[0] == 0
    assert not seen[branch == 2][:, branch == 1].any()
    assert seen[branch == 2][:, branch == 0].all()
    assert not seen.triu(1).any()
