"""The same picture as the stock pipeline's, alone and in any company.

In bfloat16 on the CPU the kernels do not look at the batch: latents are bit-equal. In float32 they do (a
matrix product of more rows is summed in another order), and bounds are stated: BOUND on latents of unit
scale, and one level of 255 on pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageImg2ImgPipeline, QwenImageInpaintPipeline, QwenImageTransformer2DModel
from PIL import Image
from torch._dynamo.utils import counters as dynamo_counters

from deployments.contracts.messages import ImageEdit, ImageRequest, Picture
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.diffusers_executor import DiffusersExecutor
from deployments.engines.painting import Job, Painting
from deployments.engines.quantization import load_pipeline, resolve_source
from tests.contracts.test_image_engines import settings
from tests.devices import DEVICE

pytestmark = pytest.mark.real

BOUND = 1e-4
"""Max abs difference of the final latents in float32 (measured over REQUESTS: 1.3e-5)."""
QUANTIZE = {"weights_dtype": "uint4", "use_svd": True, "svd_rank": 32}
BASE = ImageRequest("p", "a red circle on a blue background", " ", 128, 128, 6, 3.0, 7)
REQUESTS = [
    BASE,
    replace(BASE, seed=8, cfg_scale=1.0, steps=4),
    replace(BASE, seed=9, negative_prompt="green square, yellow", cfg_scale=4.5, steps=9),
    replace(BASE, seed=10, prompt="blue " * 40, steps=12),
    replace(BASE, seed=11, steps=1),
    replace(BASE, seed=12, prompt="", cfg_scale=1.5, steps=3),
]
VARIANTS = [("bfloat16", None), ("bfloat16", QUANTIZE), ("float32", None)]


def loaded(args: DiffusersArgs) -> DiffusersExecutor:
    executor = DiffusersExecutor(settings("diffusers"), args)
    executor.load()
    return executor


def paint(
    executor: DiffusersExecutor, *requests: ImageRequest, pictures: tuple[Picture, ...] = ()
) -> list[Painting]:
    """All of them together, step by step, each leaving when it is done; latents stay in `state`."""
    jobs = [Job(request, pictures, executor.plan(request, pictures)) for request in requests]
    paintings = [Painting(job, 0, job.request.seed, job.request.steps) for job in jobs]
    for painting in paintings:
        executor.begin(painting)
    while batch := [p for p in paintings if p.state.at < p.steps]:
        assert all(executor.step(batch))
    return paintings


class Studio:
    """The executor, and the stock pipeline on the same weights."""

    def __init__(self, dtype: str, quantize: dict[str, Any] | None) -> None:
        args = DiffusersArgs.model_validate({"dtype": dtype, "quantize": quantize, "threads": 1})
        self.dtype = dtype
        self.executor = loaded(args)
        folder = resolve_source("demo_models/image")
        self.stock = load_pipeline(folder, getattr(torch, dtype), args.quantize, DEVICE).to(DEVICE)
        self.usual = self.stock.scheduler
        self.single = type(self.usual).from_config(self.usual.config, shift_terminal=None)

    def paint(self, *requests: ImageRequest, pictures: tuple[Picture, ...] = ()) -> list[Painting]:
        return paint(self.executor, *requests, pictures=pictures)

    def expected(self, request: ImageRequest, pipe: Any = None, output: str = "latent", **extra: Any) -> Any:
        pipe = pipe or self.stock
        pipe.scheduler = self.single if request.steps == 1 else self.usual
        negative = {"negative_prompt": request.negative_prompt} if request.cfg_scale > 1 else {}
        return pipe(
            prompt=request.prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            true_cfg_scale=request.cfg_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            max_sequence_length=1024,
            output_type=output,
            **negative,
            **extra,
        ).images[0]

    def same(self, ours: torch.Tensor, stock: torch.Tensor) -> None:
        difference = (ours.float() - stock.float()).abs().max().item()
        assert ours.shape == stock.shape
        assert difference <= (BOUND if self.dtype == "float32" else 0.0)


@pytest.fixture(scope="module", params=VARIANTS, ids=["bf16", "bf16-uint4-svd32", "fp32"])
def studio(request: pytest.FixtureRequest) -> Iterator[Studio]:
    studio = Studio(*request.param)
    yield studio
    studio.executor.free()


@pytest.mark.parametrize("size", [(128, 128), (176, 96)])
@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_alone(studio: Studio, number: int, size: tuple[int, int]) -> None:
    request = replace(REQUESTS[number], width=size[0], height=size[1])
    ours = studio.paint(request)[0]
    studio.same(ours.state.x[0], studio.expected(request))


def test_in_company(studio: Studio) -> None:
    """All at once, each at its own step, with texts of 5 to 44 tokens; some leave early."""
    for ours, request in zip(studio.paint(*REQUESTS), REQUESTS, strict=True):
        studio.same(ours.state.x[0], studio.expected(request))


def test_whoever_the_company_is(studio: Studio) -> None:
    alone = studio.paint(REQUESTS[2])[0].state.x
    for others in combinations((0, 1, 3), 2):
        together = studio.paint(REQUESTS[others[0]], REQUESTS[2], REQUESTS[others[1]])
        studio.same(together[1].state.x, alone)


def test_compiled_once_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the start, no size, batch or length of a text is compiled anew, and the result is the same.

    The default size fills a pass with one row, as in the GPU profiles.
    """
    compile_blocks = QwenImageTransformer2DModel.compile_repeated_blocks
    # Tracing is what counts shapes; a backend that makes no machine code needs no compiler.
    traced = partialmethod(compile_blocks, backend="eager")
    monkeypatch.setattr(QwenImageTransformer2DModel, "compile_repeated_blocks", traced)
    options = {"quantize": QUANTIZE, "threads": 1, "compile": True, "batch_pixels": 2**14}
    args = DiffusersArgs.model_validate(options)
    compiled, plain = (loaded(a) for a in (args, args.model_copy(update={"compile": False})))
    before = dict(dynamo_counters["stats"])
    for size in ((128, 128), (176, 96), (64, 64)):
        requests = [replace(one, width=size[0], height=size[1]) for one in REQUESTS]
        ours, theirs = (paint(executor, *requests) for executor in (compiled, plain))
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.state.x, other.state.x)
    assert before["unique_graphs"] > 0
    assert dict(dynamo_counters["stats"]) == before


def test_pixels(studio: Studio) -> None:
    pixels = studio.executor.end(studio.paint(BASE, *REQUESTS[1:4])[0])
    stock = np.asarray(studio.expected(BASE, output="pil"))
    difference = np.abs(pixels.astype(int) - stock.astype(int)).max()
    assert difference <= (1 if studio.dtype == "float32" else 0)


def source(size: tuple[int, int] = (128, 128)) -> Picture:
    chance = np.random.default_rng(3)
    small = Image.fromarray(chance.integers(0, 256, (8, 8, 3), np.uint8))
    return Picture(np.asarray(small.resize(size, Image.Resampling.BICUBIC)), "s")


@pytest.mark.parametrize(("steps", "strength"), [(6, 0.6), (5, 1.0), (4, 0.1)])
def test_repainting_by_strength(studio: Studio, steps: int, strength: float) -> None:
    request = replace(BASE, steps=steps, edit=ImageEdit(strength))
    ours = studio.paint(request, replace(request, seed=99), pictures=(source(),))[0]
    pipe = QwenImageImg2ImgPipeline(**studio.stock.components)
    image = Image.fromarray(source().pixels)
    studio.same(ours.state.x[0], studio.expected(request, pipe, image=image, strength=strength))


def test_inpainting(studio: Studio) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 48:] = 255
    request = replace(BASE, edit=ImageEdit(0.8, masked=True))
    pictures = (source(), Picture(mask, "m"))
    ours = studio.paint(request, pictures=pictures)[0]
    pipe = QwenImageInpaintPipeline(**studio.stock.components)
    images = {"image": Image.fromarray(pictures[0].pixels), "mask_image": Image.fromarray(mask)}
    studio.same(ours.state.x[0], studio.expected(request, pipe, strength=0.8, **images))
