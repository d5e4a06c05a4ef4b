"""Serves a model over HTTP, to clients of the OpenAI protocol: chat, images in answers, image generation.

    python -m emu_jax serve --checkpoint runs/demo
    python -m emu_jax serve --checkpoint Emu-instruct --host 0.0.0.0 --api-key-file keys.txt --system image
    python -m emu_jax serve --checkpoint Emu --mesh data:1,fsdp:1,tensor:8 --slots 16
    python -m emu_jax serve --checkpoint Emu --adapter medical=adapters/medical --adapter maps=adapters/maps

The programs are compiled first; until then /health answers 503. SIGTERM completes the requests that are there and
exits. docs/how-to/serving.md lists routes and options. Needs: pip install 'emu_jax[serve]'
"""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_jax.cli.arguments import ArgumentParser, at_least
from emu_jax.cli.generate import SYSTEMS, add_chat_arguments, system_message
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError

if TYPE_CHECKING:
    from emu_jax.generation.pipeline import EmuPipeline

_NEEDED = ("python_multipart", "starlette", "uvicorn")


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = parser().parse_args(argv)
    sizes = tuple(map(_size, arguments.image_size))
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}; install them with: pip install 'emu_jax[serve]'")
    with heavy_imports():
        from emu_jax.cli.loading import load_named
        from emu_jax.serving.transport import read_keys

    keys = read_keys(arguments.api_key_file)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("emu_jax.serving").setLevel(logging.INFO)
    models = load_named(arguments, name=arguments.model_name or arguments.checkpoint.resolve().name)
    emu = next(iter(models.values()))
    serve(models, arguments, engine_config(emu, arguments, sizes), keys)


def serve(models: dict[str, EmuPipeline], arguments: Any, config: Any, keys: tuple[str, ...]) -> None:
    """Run the server on process 0 until a signal ends it; the other processes repeat its device work."""
    import jax

    from emu_jax.generation.chat import ChatStyle
    from emu_jax.serving.app import Service, create_app
    from emu_jax.serving.build import create_device, create_engine
    from emu_jax.serving.config import Limits
    from emu_jax.serving.prepare import Preparation
    from emu_jax.serving.server import Server, listen

    emu = next(iter(models.values()))
    device = create_device(emu, config, {name: one.params for name, one in models.items()})
    for one in models.values():
        one.params = None  # the device has them layer by layer
    if jax.process_index() != 0:
        for program in device.program_names:
            device.compile(program)
        device.follow()
        return
    safety = None if arguments.no_safety else emu.safety_checker
    engine = create_engine(emu, config, device, safety=safety)
    limits = Limits(
        max_body_bytes=arguments.max_body_mb * 2**20,
        max_image_bytes=arguments.max_image_mb * 2**20,
        max_image_pixels=arguments.max_image_megapixels * 1_000_000,
        url_hosts=tuple(arguments.allow_url_host),
    )
    system, style = system_message(arguments.system), ChatStyle(arguments.chat_style)
    service = Service(Preparation(emu, engine, limits, system=system, style=style), models=tuple(models))
    app = create_app(service, keys=keys, origins=arguments.allow_origin or ("*",))
    with listen(arguments.host, arguments.port) as bound:
        port = bound.getsockname()[1]
        engine.start()
        url = f"http://{arguments.host}:{port}/v1"
        print(f"serving {', '.join(models)} at {url}; compiling, /health says when it is ready", flush=True)
        Server(app, engine, drain_seconds=arguments.drain_seconds).run(sockets=[bound])


def engine_config(emu: EmuPipeline, arguments: Any, sizes: tuple[tuple[int, int], ...]) -> Any:
    """Return the sizes of the engine: what was given, and what the model suggests for the rest."""
    from emu_jax.serving.build import suggested_chunk, trained_size
    from emu_jax.serving.config import EngineConfig

    chunk = arguments.prefill_chunk
    context = min(arguments.context or emu.config.decoder.max_length, emu.config.decoder.max_length)
    if chunk is None:
        chunk = suggested_chunk(context)
    if not emu.has_visual_decoder:
        sizes = ()
    else:
        sizes = sizes or (trained_size(emu),)
        for height, width in sizes:
            emu.visual_decoder.latent_size(height, width)
    return EngineConfig(
        slots=arguments.slots,
        context=context // chunk * chunk,
        prefill_chunk=chunk,
        decode_steps=arguments.decode_steps,
        vision_batch=arguments.vision_batch,
        max_beams=arguments.max_beams,
        sampler_rows=arguments.sampler_rows,
        max_sampler_steps=arguments.max_image_steps,
        image_sizes=sizes,
        max_queue=arguments.max_queue,
        timeout=arguments.timeout,
    )


def parser() -> ArgumentParser:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_model_arguments()
    parser.add_argument("--model-name", help="what clients call the model (default: the checkpoint's folder)")
    parser.add_argument("--system", choices=SYSTEMS, default="none", help="for chats without a system message")
    add_chat_arguments(parser)
    parser.add_argument("--no-safety", action="store_true", help="send images unscreened though there is a checker")
    http = parser.add_argument_group("HTTP")
    http.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    http.add_argument("--port", type=at_least(0, at_most=65_535), default=8000, help="0: a free one (default: 8000)")
    http.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys that requests must bring, one a line")
    http.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="for CORS (default: any)")
    http.add_argument("--allow-url-host", action="append", default=[], metavar="HOST",
                      help="images may be fetched from this public host (default: data URLs only)")  # fmt: skip
    http.add_argument("--drain-seconds", type=int, default=600, help="after SIGTERM, at most (default: 600)")
    sizes = parser.add_argument_group("sizes, fixed when the programs are compiled")
    limits = parser.add_argument_group("limits")
    for group, flag, default, doc in (
        (sizes, "slots", 8, "answers that are decoded together"),
        (sizes, "decode-steps", 4, "tokens of each answer between two looks at the queue"),
        (sizes, "vision-batch", 4, "images encoded together"),
        (sizes, "max-beams", 5, "largest num_beams; 1: no beam search"),
        (sizes, "sampler-rows", 2, "images sampled together"),
        (sizes, "max-image-steps", 100, "largest num_inference_steps"),
        (limits, "max-queue", 512, "requests that wait; one more gets 429"),
        (limits, "max-body-mb", 64, "megabytes of a request"),
        (limits, "max-image-mb", 20, "megabytes of an image or video"),
        (limits, "max-image-megapixels", 40, "of an image, or of a video's frame"),
    ):
        group.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=f"{doc} (default: {default})")
    sizes.add_argument("--context", type=int, metavar="N", help="tokens of prompt and answer (default: the model's)")
    sizes.add_argument("--prefill-chunk", type=int, metavar="N", help="prompt tokens at once (default: at most 128)")
    sizes.add_argument("--image-size", action="append", default=[], metavar="WxH",
                       help="that clients may request, the first is the default (default: as trained)")  # fmt: skip
    limits.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="of one request (default: 600)")
    return parser


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise UserError(f"An image size is WIDTHxHEIGHT, such as 512x512, not {text!r}.")
    return int(match[2]), int(match[1])
