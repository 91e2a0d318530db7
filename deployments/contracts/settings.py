"""Settings of one model: an entry under `models:` in a profile, frozen, checked before anything starts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.contracts.messages import Detail

Task = Literal["vision_language", "image_generation"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Autoscaling(Frozen):
    """Serve's autoscaling, finite by default. `min_replicas: 0` scales to zero when idle."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 8
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10
    downscale_delay_s: Annotated[float, Field(ge=0)] = 600

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not exceed max_replicas")
        return self


class ModelSettings(Frozen):
    """One model, one deployment."""

    id: Annotated[str, Field(min_length=1, pattern=r"^[\w][\w./:-]*$")]
    aliases: tuple[str, ...] = ()
    task: Task
    engine: Literal["vllm", "diffusers", "fake"]
    source: str = ""
    """Checkpoint: a hub id or a folder. A relative path that exists in the project is taken from there."""
    gpu_fraction: Annotated[float, Field(ge=0)] = 0
    """Share of one GPU: Ray's num_gpus, vLLM's gpu_memory_utilization and torch's memory cap. 0 runs on the
    CPU; a whole number above 1 takes that many cards of one node for tensor parallelism."""
    num_cpus: Annotated[float, Field(ge=0)] = 1
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """vllm: named as in `vllm serve`. diffusers: see DiffusersArgs. fake: see FakeArgs."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the replica's process."""
    autoscaling: Autoscaling = Autoscaling()
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 64
    """At a replica at once."""
    max_queued_requests: Annotated[int, Field(ge=1)] = 128
    """Beyond those: at each ingress, or, of an image model, at the replica too, whose queue has places."""
    load_seconds: Annotated[float, Field(gt=0)] = 60
    """How long loading takes, roughly: the Retry-After of a model that has not loaded here before."""
    generation: GenerationDefaults | None = None
    """Image models only: what a request that names no size, steps or scale gets."""

    @property
    def max_held_requests(self) -> int:
        """What a replica of an image model takes in, waiting included."""
        return self.max_ongoing_requests + self.max_queued_requests

    @property
    def deployment_name(self) -> str:
        """Name of its Serve deployment, unique per model id."""
        shell = {"vision_language": "VisionLanguage", "image_generation": "ImageGenerator"}[self.task]
        return f"{shell}-{self.id.replace('/', '--').replace(':', '-')}"

    @model_validator(mode="after")
    def _fits(self) -> ModelSettings:
        engines = {"vision_language": ("vllm", "fake"), "image_generation": ("diffusers", "fake")}
        if self.engine not in engines[self.task]:
            raise ValueError(f"engine {self.engine!r} cannot do {self.task}: use one of {engines[self.task]}")
        if self.gpu_fraction > 1 and self.gpu_fraction != int(self.gpu_fraction):
            raise ValueError("gpu_fraction above 1 must be a whole number of cards")
        if self.engine != "fake" and not self.source:
            raise ValueError("source is required: a checkpoint folder or hub id")
        if self.task == "image_generation" and self.generation is None:
            raise ValueError("generation is required for an image model: its sizes, steps and cfg_scale")
        return self


class GenerationDefaults(Frozen):
    """Sizes and step counts that an image model was trained for."""

    size: Annotated[str, Field(pattern=r"^\d+x\d+$")]
    """WIDTHxHEIGHT in pixels for `auto`."""
    sizes: tuple[str, ...] = ()
    """Sizes worth offering, `size` among them."""
    max_pixels: Annotated[int, Field(gt=0)]
    steps: Annotated[int, Field(ge=1)]
    max_steps: Annotated[int, Field(ge=1)] = 100
    cfg_scale: Annotated[float, Field(ge=1)]
    negative_prompt: str = " "
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Longest time for one request, its wait included; None for no limit."""


class PreprocessingSettings(Frozen):
    """Limits that every image passes before a GPU replica sees it."""

    replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 4
    num_cpus: Annotated[float, Field(ge=0)] = 0.5
    max_bytes: Annotated[int, Field(gt=0)] = 20 * 1024 * 1024
    max_source_pixels: Annotated[int, Field(gt=0)] = 64_000_000
    max_paint_pixels: Annotated[int, Field(gt=0)] = 16_777_216
    """Of a picture to be repainted or its mask: those keep their size."""
    max_frames: Annotated[int, Field(gt=0)] = 1000
    """Of an animation; only the first is decoded."""
    max_pixels: Annotated[int, Field(gt=0)] = 1_048_576
    """Larger pictures are reduced to this many pixels, keeping their aspect. A request's `detail` of low or
    high asks for one of the next two instead."""
    low_detail_pixels: Annotated[int, Field(gt=0)] = 262_144
    high_detail_pixels: Annotated[int | None, Field(gt=0)] = None
    """None: as max_pixels."""
    decode_workers: Annotated[int | None, Field(ge=1)] = None
    """Processes that decode; None: one per CPU of the replica, at least two."""
    decode_memory_mb: Annotated[int, Field(ge=64)] = 1536
    """What one of them may take for a picture: 64 megapixels of WebP take 1,300."""
    decode_timeout_s: Annotated[float, Field(gt=0)] = 4
    """For one picture; the process is then killed."""
    cache_mb: Annotated[int, Field(ge=0)] = 256
    """Decoded pictures that a replica keeps, so that the next turn of a conversation decodes none again."""
    fetch_urls: bool = True
    fetch_timeout_s: Annotated[float, Field(gt=0)] = 10
    fetch_private_hosts: tuple[str, ...] = ()
    """`host:port` pairs that may be fetched although their address is not public, e.g. an internal store."""

    def budget(self, detail: Detail) -> int:
        """The pixels that a picture of this detail is reduced to."""
        if detail == "low":
            return min(self.low_detail_pixels, self.max_pixels)
        return max(self.high_detail_pixels or 0, self.max_pixels) if detail == "high" else self.max_pixels


ModelSettings.model_rebuild()
