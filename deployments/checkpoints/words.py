"""How well a description matches a prompt or another description, by their words: simple, the same for all.

A word is a run of Latin letters or digits, or a single Chinese character. Words that only bind others (a, on,
的, 在 ...) and that ask for a picture (draw, picture, 画 ...) do not count.
"""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_LEFT_OUT = frozenset(
    (
        *("a", "an", "the", "this", "that", "it", "its", "there", "is", "are"),
        *("of", "on", "in", "at", "to", "with", "and", "or", "as"),
        *("draw", "paint", "please", "picture", "image", "photo", "painting", "drawing", "show", "shows"),
        *"的在有是了和与一个张幅颗请画图片这上",
    )
)


def words(text: str) -> frozenset[str]:
    """The words that count, in lower case."""
    return frozenset(_WORD.findall(unicodedata.normalize("NFKC", text).casefold())) - _LEFT_OUT


def adherence(prompt: str, description: str) -> float:
    """Share of the prompt's words that the description has; 1 for a prompt without any."""
    asked = words(prompt)
    return len(asked & words(description)) / len(asked) if asked else 1.0


def same(first: str, second: str) -> bool:
    """Whether two descriptions say the same in the same order, but for case and punctuation."""
    return _sequence(first) == _sequence(second)


def overlap(first: str, second: str) -> float:
    """Words in both over words in either; 1 if neither has any."""
    a, b = words(first), words(second)
    return len(a & b) / len(a | b) if a | b else 1.0


def _sequence(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
