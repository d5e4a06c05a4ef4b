"""A real server on 127.0.0.1 with a tiny Emu and a tiny visual decoder, and the official client of its protocol."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import threading
import time
from collections.abc import Callable, Iterator

import flax.linen as nn
import httpx2 as httpx
import jax
import jax.numpy as jnp
import numpy as np
import openai
import PIL.Image
import pytest

from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder, unet_inputs, vae_inputs
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.models.presets import emu_tiny
from emu_jax.serving.app import Service, create_app
from emu_jax.serving.build import create_device, create_engine
from emu_jax.serving.config import EngineConfig, Limits
from emu_jax.serving.engine import Engine, Status
from emu_jax.serving.prepare import Preparation
from emu_jax.serving.server import Server, listen
from emu_jax.sharding.specs import unbox
from tests.generation.conftest import LINES, random_params

MODEL = "tiny"
N = 4  # <image> tokens of an image
CONTEXT = 128
IMAGE_SIZE = 8  # pixels of a generated image's side
START_SECONDS = 180


@dataclasses.dataclass(frozen=True)
class Running:
    """A server and what the tests compare it with."""

    url: str
    emu: EmuPipeline
    engine: Engine

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The present value of a metric, 0 where it has none yet."""
        return self.engine.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="session")
def emu(tmp_path_factory: pytest.TempPathFactory) -> EmuPipeline:
    """32 x 32 pixels, N = 4, width 128, random weights; images of 8 x 8 pixels."""
    tokenizer = train_tokenizer(LINES * 4, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=300)
    config = emu_tiny(vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, max_length=CONTEXT))
    unet = UNetConfig(
        sample_size=4,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=config.decoder.width,
        norm_num_groups=8,
    )
    vae = VAEConfig(block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8)
    modules = UNet(unet), VAE(vae)
    params = {
        "unet": random_tree(modules[0], unet_inputs(unet)),
        "vae": random_tree(modules[1], vae_inputs(vae)),
    }
    decoder = VisualDecoder(*modules, schedule=NoiseSchedule(), params=params)
    return EmuPipeline(config, random_params(config), tokenizer=tokenizer, visual_decoder=decoder)


def random_tree(module: nn.Module, inputs: tuple) -> dict:
    """Random parameters; quicker than compiling the module's own initialization."""
    rng = np.random.default_rng(4)
    shapes = unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.1, size=leaf.shape), jnp.float32), shapes)


ENGINE = EngineConfig(slots=4, context=CONTEXT, prefill_chunk=16, image_sizes=((IMAGE_SIZE, IMAGE_SIZE),), timeout=60)
LIMITS = Limits(max_body_bytes=2**20, max_image_bytes=2**18, max_image_pixels=2**20, max_media=8)


@contextlib.contextmanager
def running(
    emu: EmuPipeline, config: EngineConfig = ENGINE, *, keys: tuple[str, ...] = (), start: bool = True
) -> Iterator[Running]:
    """Serve on a free port of 127.0.0.1, from a thread."""
    engine = create_engine(emu, config, create_device(emu, config, {MODEL: emu.params}))
    app = create_app(Service(Preparation(emu, engine, LIMITS, system=""), models=(MODEL,)), keys=keys)
    server = Server(app, engine, drain_seconds=10)
    bound = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    if start:
        engine.start()
        wait_until(lambda: engine.status is not Status.STARTING, seconds=START_SECONDS)
        assert engine.status is Status.READY
    try:
        yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", emu, engine)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        bound.close()


@contextlib.contextmanager
def another_port(server: Running, *, limits: Limits = LIMITS, keys: tuple[str, ...] = ()) -> Iterator[Running]:
    """Serve the same engine on one more port, with other limits or keys."""
    service = Service(Preparation(server.emu, server.engine, limits, system=""), models=(MODEL,))
    other = Server(create_app(service, keys=keys, stop_engine=False), server.engine, drain_seconds=5)
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=other.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield dataclasses.replace(server, url=f"http://127.0.0.1:{bound.getsockname()[1]}")
        finally:
            other.should_exit = True
            thread.join(timeout=10)


@pytest.fixture(scope="session")
def server(emu: EmuPipeline) -> Iterator[Running]:
    with running(emu) as serving:
        yield serving


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return server.client()


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def slow(server: Running) -> Iterator[None]:
    """Slow the engine down, 20 ms for each unit of work, so that requests stay in flight while a test looks."""
    text, images = server.engine._text, server.engine._images
    text_do, images_do = text.do, images.do

    def wait_first(do):
        return lambda *arguments: (time.sleep(0.02), do(*arguments))

    text.do, images.do = wait_first(text_do), wait_first(images_do)
    yield
    del text.do, images.do
    wait_until(lambda: server.engine.in_flight == 0, seconds=30)


def wait_until(true: Callable[[], bool], *, seconds: float) -> float:
    """Wait for a condition; return how long it took."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.005)
    return time.monotonic() - started


def solid_image(red: int, green: int, blue: int, side: int = 40) -> PIL.Image.Image:
    """An image with some structure."""
    pixels = np.full((side, side, 3), (red, green, blue), np.uint8)
    pixels[: side // 2] //= 2
    return PIL.Image.fromarray(pixels)


def data_url(image: PIL.Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def user(*parts: str | PIL.Image.Image) -> list[dict]:
    """A conversation of one message of texts and images."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]
    return [{"role": "user", "content": content}]
