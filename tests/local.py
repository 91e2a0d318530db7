"""The whole application in one process: real shells, engines and HTTP floor; only Ray is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from deployments.contracts.messages import (
    ChatRequest,
    ImageEvent,
    ImageQueue,
    ImageRequest,
    ImageSource,
)
from deployments.contracts.settings import ModelSettings, PreprocessingSettings
from deployments.engines.decoders import Decoders
from deployments.image_generator import ImageGenerator
from deployments.preprocessing import Preprocessing
from deployments.vision_language import VisionLanguage
from serve_app.graph.catalog import Catalog
from serve_app.graph.operations import Operations
from serve_app.graph.readiness import Readiness, State
from serve_app.ingress.application import make_application
from serve_app.settings import IngressSettings

CHAT = {
    "id": "fake-vlm",
    "aliases": ["vlm"],
    "task": "vision_language",
    "engine": "fake",
    "load_seconds": 30,
}
PAINT = {
    "id": "fake-image",
    "task": "image_generation",
    "engine": "fake",
    "generation": {"size": "64x64", "max_pixels": 65536, "steps": 4, "cfg_scale": 3},
}


class LocalPreprocessing:
    def __init__(self, shell: Preprocessing) -> None:
        self._shell = shell

    def prepare(self, source: ImageSource) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._shell.prepare(source))


class LocalChat:
    def __init__(self, shell: VisionLanguage) -> None:
        self._shell = shell

    async def chat(self, request: ChatRequest, pictures: Sequence[Any]) -> bytes:
        return await self._shell.chat(request, *[await picture for picture in pictures])

    async def stream_chat(
        self, request: ChatRequest, pictures: Sequence[Any]
    ) -> AsyncGenerator[list[bytes], None]:
        stream = self._shell.stream_chat(request, *[await picture for picture in pictures])
        try:
            async for chunks in stream:
                yield chunks
        finally:
            await stream.aclose()

    async def gpu_memory_gb(self) -> float:
        return await self._shell.gpu_memory_gb()


class LocalImages:
    def __init__(self, shell: ImageGenerator) -> None:
        self._shell = shell

    async def generate(
        self, request: ImageRequest, pictures: Sequence[Any] = ()
    ) -> AsyncGenerator[ImageEvent, None]:
        stream = self._shell.generate(request, *[await picture for picture in pictures])
        try:
            async for event in stream:
                yield event
        finally:
            await stream.aclose()

    async def queue(self) -> ImageQueue:
        return await self._shell.queue()

    async def cancel(self, name: str) -> bool:
        return await self._shell.cancel(name)


class Application:
    """Holds what a test may want to reach: the shells, and the states that the models seem to have."""

    def __init__(
        self, models: Sequence[Mapping[str, Any]], ingress: Mapping[str, Any], prep: Mapping[str, Any]
    ):
        self.models = [ModelSettings.model_validate(model) for model in models]
        self.ingress = IngressSettings.model_validate(ingress)
        self.prep = PreprocessingSettings.model_validate(prep)
        self.states: dict[str, State] = {model.deployment_name: "ready" for model in self.models}
        self.shells: dict[str, Any] = {}
        self.operations: Operations | None = None

    async def start(self) -> Any:
        # Without waiting for its processes: most tests send no picture.
        decoders = Decoders(self.prep)
        self.shells["preprocessing"] = await _built(Preprocessing, self.prep, None, decoders)
        preprocessing = LocalPreprocessing(self.shells["preprocessing"])
        chat: dict[str, Any] = {}
        images: dict[str, Any] = {}
        for model in self.models:
            if model.task == "vision_language":
                self.shells[model.id] = await _built(VisionLanguage, model)
                chat[model.id] = LocalChat(self.shells[model.id])
            else:
                self.shells[model.id] = await _built(ImageGenerator, model)
                images[model.id] = LocalImages(self.shells[model.id])
        readiness = Readiness(self.models, self._states)
        await readiness.refresh()
        catalog = Catalog(self.models)
        self.operations = Operations(catalog, readiness, preprocessing, chat, images)
        return make_application(self.operations, self.ingress)

    async def _states(self) -> Mapping[str, State]:
        return self.states


def fake_application(
    chat: Mapping[str, Any] | None = None,
    paint: Mapping[str, Any] | None = None,
    ingress: Mapping[str, Any] | None = None,
    prep: Mapping[str, Any] | None = None,
    states: Mapping[str, State] | None = None,
) -> Application:
    """A chat and an image model on the fake engines.

    Args:
        chat: what differs from CHAT.
        paint: what differs from PAINT.
        ingress: settings of the edge.
        prep: settings of preprocessing.
        states: model id → what the cluster says of it; "ready" where it is not named.
    """
    application = Application(
        [{**CHAT, **(chat or {})}, {**PAINT, **(paint or {})}], ingress or {}, prep or {}
    )
    for model in application.models:
        application.states[model.deployment_name] = (states or {}).get(model.id, "ready")
    return application


async def _built(shell: type, *args: Any) -> Any:
    # Serve awaits asynchronous constructors; plain Python does not.
    instance = shell.__new__(shell)
    await instance.__init__(*args)
    return instance


def cancelling(app: Any) -> Any:
    """What Ray Serve does around an ingress: a request is cancelled when its client goes away."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        inbox: asyncio.Queue[Any] = asyncio.Queue()

        async def listen() -> None:
            message = {"type": ""}
            while message["type"] != "http.disconnect":
                message = await receive()
                inbox.put_nowait(message)

        work, ear = asyncio.create_task(app(scope, inbox.get, send)), asyncio.create_task(listen())
        await asyncio.wait({work, ear}, return_when=asyncio.FIRST_COMPLETED)
        ear.cancel()
        if not work.done():
            work.cancel()
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()

    return wrapped


@asynccontextmanager
async def serve_locally(application: Application) -> AsyncIterator[str]:
    """Serve over real HTTP on a free port; yields the base URL."""
    app = await application.start()
    config = uvicorn.Config(cancelling(app), host="127.0.0.1", port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        if task.done():
            task.result()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
        for shell in application.shells.values():
            if (closing := shell.__del__()) is not None:
                await closing
