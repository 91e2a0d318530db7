"""A vision-language model that says what it sees, for judging pictures without looking at the prompt."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence

import numpy as np

from deployments.contracts.engines import ChatEngine
from deployments.contracts.messages import ChatRequest, Picture
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_chat_engine
from deployments.engines.image_ops import digest

QUESTION, QUESTION_ZH = "Describe the picture.", "描述这张图片。"
_CHINESE = re.compile(r"[\u3400-\u9fff]")


class Judge:
    """Looks at one picture at a time, without sampling, so that one picture always gets one description."""

    def __init__(self, engine: ChatEngine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, str], str] = {}

    async def describe(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], progress: Callable[[], None]
    ) -> list[str]:
        """One description a picture, in the prompt's language. Raises AtelierError."""
        said = []
        for pixels, prompt in zip(pictures, prompts, strict=True):
            said.append(await self._describe(pixels, QUESTION_ZH if _CHINESE.search(prompt) else QUESTION))
            progress()
        return said

    async def _describe(self, pixels: np.ndarray, question: str) -> str:
        picture = Picture(pixels, digest(pixels))
        key = (picture.digest, question)
        if key not in self._known:
            content = [{"type": "picture", "picture": 0}, {"type": "text", "text": question}]
            body = {
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_completion_tokens": 128,
            }
            answer = await self._engine.chat(ChatRequest(f"judge-{len(self._known)}", body), [picture])
            self._known[key] = str(json.loads(answer)["choices"][0]["message"]["content"] or "").strip()
        return self._known[key]


def make_judge_engine(source: str, device: str) -> ChatEngine:
    """vLLM on a folder or hub id; on a GPU it takes most of the card, which must be free by now."""
    on_gpu = device.startswith("cuda")
    engine_args = {
        "max-model-len": 2048,
        "max-num-seqs": 4,
        "enforce-eager": True,
        "limit-mm-per-prompt": {"image": 1, "video": 0},
        "use-tqdm-on-load": False,
    }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # a hundred lines about itself, amid a progress bar
    if not on_gpu:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # other work is on these cores too
        engine_args |= {"distributed-executor-backend": "uni", "kv-cache-memory-bytes": 256 * 2**20}
    return make_chat_engine(
        ModelSettings(
            id="judge",
            task="vision_language",
            engine="vllm",
            source=source,
            gpu_fraction=0.85 if on_gpu else 0,
            engine_args=engine_args,
        )
    )
