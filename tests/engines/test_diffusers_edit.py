"""Edit models (Qwen-Image-Edit and its Plus): the pictures that they look at, against the stock pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import ImageEdit, ImageRequest, ImageUsage, Picture
from deployments.engines import diffusers_sources
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.diffusers_executor import DiffusersExecutor
from deployments.engines.painting import Painting
from deployments.engines.quantization import load_pipeline, resolve_source
from tests.contracts.test_image_engines import a_source, settings
from tests.devices import DEVICE
from tests.engines.test_diffusers_parity import paint

pytestmark = pytest.mark.real

REQUEST = ImageRequest("e", "make it blue", " ", 128, 128, steps=3, cfg_scale=3.0, seed=7, edit=ImageEdit())


class Editor:
    """A checkpoint of an edit pipeline made of the demo's components, and both ways of running it."""

    def __init__(self, name: str, folder: Path) -> None:
        parts = load_pipeline(resolve_source("demo_models/image"), torch.bfloat16).components
        self.name = name
        tokenizer = parts["tokenizer"]
        processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
        self.stock = getattr(diffusers, name)(**parts, processor=processor)
        self.stock.set_progress_bar_config(disable=True)
        self.stock.save_pretrained(folder)
        self.stock.to(DEVICE)
        model = settings("diffusers").model_copy(update={"source": str(folder)})
        self.executor = DiffusersExecutor(model, DiffusersArgs(threads=1))
        self.executor.load()

    def paint(self, *requests: ImageRequest, sources: list[Picture]) -> list[Painting]:
        return paint(self.executor, *requests, pictures=tuple(sources))

    def expected(self, request: ImageRequest, sources: list[Picture]) -> Any:
        images = [Image.fromarray(source.pixels) for source in sources]
        return self.stock(
            image=images if self.name.endswith("PlusPipeline") else images[0],
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            true_cfg_scale=request.cfg_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="latent",
        ).images[0]


@pytest.fixture(scope="module", params=["QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
def editor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    # The real area of references, a megapixel, is too much for a test; both sides read it from here.
    with pytest.MonkeyPatch.context() as patch:
        for module in ("edit", "edit_plus"):
            name = f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{module}"
            real = pytest.importorskip(name).calculate_dimensions
            patch.setattr(f"{name}.calculate_dimensions", lambda area, ratio, f=real: f(area / 64, ratio))
        editor = Editor(request.param, tmp_path_factory.mktemp("edit"))
        yield editor
        editor.executor.free()


def test_like_the_stock_pipeline_alone_and_in_company(editor: Editor) -> None:
    sources = [a_source(96, 64)]
    requests = [REQUEST, replace(REQUEST, seed=8, steps=5, prompt="a green circle on it")]
    for painting, request in zip(editor.paint(*requests, sources=sources), requests, strict=True):
        assert torch.equal(painting.state.x[0], editor.expected(request, sources))


def test_several_references(editor: Editor) -> None:
    sources = [a_source(96, 64), a_source(64, 64)]
    if editor.executor._sources.references == 1:
        with pytest.raises(InvalidRequest, match=r"1 image\(s\) at most"):
            editor.executor.plan(REQUEST, sources)
        return
    painting = editor.paint(REQUEST, sources=sources)[0]
    assert torch.equal(painting.state.x[0], editor.expected(REQUEST, sources))


def test_a_mask_is_kept_to(editor: Editor) -> None:
    source = a_source()
    mask = np.zeros((128, 128), np.uint8)
    mask[:50] = 255
    request = replace(REQUEST, edit=ImageEdit(0.7, masked=True))
    pixels = editor.executor.end(editor.paint(request, sources=[source, Picture(mask, "m")])[0])
    assert np.array_equal(pixels[50:], source.pixels[50:])
    assert (pixels[:50] != source.pixels[:50]).any()


def test_references_are_counted_and_asked_for(editor: Editor) -> None:
    plan = editor.executor.plan(REQUEST, [a_source(96, 96)])
    (reference,) = plan.group[2]  # type: ignore[index]
    tokens = reference[1] * reference[2]
    assert plan.usage == ImageUsage(3, 64, tokens)
    assert plan.pixels == 128 * 128 + tokens * 256
    with pytest.raises(InvalidRequest, match="send one with the request"):
        editor.executor.plan(replace(REQUEST, edit=None), [])


def test_both_pipelines_are_known() -> None:
    assert all(hasattr(diffusers, name) for name in diffusers_sources.MAX_REFERENCES)
