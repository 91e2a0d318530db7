"""Trains the byte-level BPE tokenizer that both demo models share: a real Qwen2Tokenizer of 1,400 entries.

All 256 bytes are in it, so that no text fails. QwenImagePipeline drops the first 34 tokens of its prompt
template, a number that a checkpoint cannot change: with Qwen's own tokenizer each word of that prefix is one
token, so the prefix is shown to the BPE trainer often enough that it is here too. `check` makes sure.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from demo_models.training import data as world

PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PREFIX_TOKENS = 34
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PLAIN = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
_ZH_WORDS = [
    "背景",
    "图片",
    "一个",
    "两个",
    "三个",
    "四个",
    "一颗",
    "两颗",
    "三颗",
    "四颗",
    "小的",
    "大的",
    "左边",
    "右边",
    "上方",
    "下方",
]


def _is_cjk(character: str) -> bool:
    return ord(character) > 0x2E80


def corpus(sentences: list[str]) -> Iterator[str]:
    """What the merges are learnt from: Chinese as whole words or single characters, never as phrases."""
    rng = random.Random(0)
    yield from [PREFIX.replace("<|im_start|>", "").replace("<|im_end|>", "")] * 400
    yield from ["assistant\n", "user\n", "system\n", "tool"] * 100
    for _ in range(4000):
        yield world.prompt(world.sample_spec(rng), rng, "en")
        yield world.describe(world.sample_spec(rng), "en")
    words = [chinese for _, chinese in world.COLORS.values()] + [shape[1] for shape in world.SHAPES.values()]
    for word in [*words, *world.POS_ZH.values(), *_ZH_WORDS]:
        yield from [word] * 300
    characters = set("".join(world.prompt(world.sample_spec(rng), rng, "zh") for _ in range(500)))
    for sentence in sentences:
        chinese = set(filter(_is_cjk, sentence))
        characters |= chinese
        if not chinese:
            yield from [sentence] * 3
    for character in sorted(characters):
        yield from [character] * 60


def build(sentences: list[str]) -> Any:
    """A Qwen2Tokenizer.

    Args:
        sentences: what the dialogues say, for words that prompts do not use.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=3, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(sentences), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    finished = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        padding_side="right",
        extra_special_tokens=NAMED,
    )
    finished.add_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    finished.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN])
    return finished


def check(tokenizer: Any) -> None:
    """Raises ValueError if the template's prefix is not 34 tokens long, or a text does not come back."""
    count = len(tokenizer(PREFIX).input_ids)
    if count != PREFIX_TOKENS:
        raise ValueError(f"the template's prefix takes {count} tokens; the pipeline drops {PREFIX_TOKENS}")
    for text in ("ÿ unseen ☃ żółć 漢字 \n\t 12,345", "a red circle", "蓝色背景上的两个绿色星星"):
        if tokenizer.decode(tokenizer(text).input_ids) != text:
            raise ValueError(f"{text!r} does not come back from its tokens")


def text_ids(tokenizer: Any) -> dict[str, int]:
    """What a language model's config says of its tokenizer."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }


def vision_ids(tokenizer: Any) -> dict[str, int]:
    """What a vision-language model's config says of its tokenizer, beside `text_ids`."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def train(out: Path) -> None:
    """Write the tokenizer to a folder."""
    from demo_models.training import chat

    build(list(chat.all_text(random.Random(0)))).save_pretrained(out)
    check(Qwen2Tokenizer.from_pretrained(out))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
