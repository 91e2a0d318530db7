"""The wordings of `phrases.json`: what people ask and say, and what the vision-language model says back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PHRASES: dict[str, Any] = json.loads(Path(__file__).with_name("phrases.json").read_text())
ASKED: dict[str, dict[str, list[str]]] = {lang: PHRASES[lang]["questions"] for lang in ("en", "zh")}
"""Questions about a picture by language and task; {} stands for what is asked about."""
TASKS = list(ASKED["en"])
ANSWERS: dict[str, dict[str, str]] = {lang: PHRASES[lang]["answers"] for lang in ("en", "zh")}
SYSTEMS: list[str | None] = PHRASES["systems"]
