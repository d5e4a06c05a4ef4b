"""The web page: tabs to chat, to generate, to blend and to edit. Requires gradio, which is imported in functions only.

The page and its server use no other host: gradio's reports are off, fonts are the browser's, and the content security
policy forbids the browser to load anything from elsewhere.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from emu_jax.bounds import Between, Checked
from emu_jax.chat.session import Session, question_parts
from emu_jax.diffusion.samplers import Sampler
from emu_jax.errors import UserError
from emu_jax.generation.options import ImageOptions
from emu_jax.serving.client import Client

_HEIGHT = 320  # pixels of an image's box
_CONCURRENT = 16  # answers; the engine's slots bound those that are computed
_SHUTDOWN_SECONDS = 1  # for the streams to open pages, which do not end otherwise
_FILE_TYPES = ["image", "video"]
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'"
)
_STYLE = "button[aria-label=Share], button[title=Share] { display: none }"  # they would upload to another host
_TEXT, _IMAGE, _BOTH = "text", "image", "text and images"
_MODALITIES = {_TEXT: ["text"], _IMAGE: ["image"], _BOTH: ["text", "image"]}

Messages = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class WebOptions(Checked):
    """Of the page's server. `max_upload_mb` bounds one file, `max_beams` the panel's choice."""

    host: str
    port: Annotated[int, Between(0, 65_535)]  # 0: a free one
    max_upload_mb: Annotated[int, Between(1, 2**20)]
    max_beams: Annotated[int, Between(1, 64)]


def serve_page(client: Client, web: WebOptions, options: Mapping[str, Any]) -> None:
    """Serve the page until a signal ends the process. `options`: of every request that the panel does not change."""
    import uvicorn

    from emu_jax.serving.server import QuietServer, listen

    with tempfile.TemporaryDirectory(prefix="emu_jax_chat") as folder, listen(web.host, web.port) as bound:
        app = create_app(client, web, options, folder=Path(folder))
        print(f"web page at http://{web.host}:{bound.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_SHUTDOWN_SECONDS)
        QuietServer(config).run(sockets=[bound])


def create_app(client: Client, web: WebOptions, options: Mapping[str, Any], *, folder: Path) -> Any:
    """Return the page as an ASGI application; `folder` is for generated images."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import fastapi
    import gradio as gr

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def add_policy(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["content-security-policy"] = _POLICY
        return response

    return gr.mount_gradio_app(
        app,
        create_page(client, web, options, folder=folder),
        path="/",
        max_file_size=f"{web.max_upload_mb}mb",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_STYLE,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
    )


def create_page(client: Client, web: WebOptions, options: Mapping[str, Any], *, folder: Path) -> Any:
    """Return the page as gradio's Blocks."""
    import gradio as gr

    defaults = ImageOptions()

    opened: dict[str, tuple[Session, Session]] = {}  # by the id of a browser's tab

    def new_session() -> Session:
        own = folder / uuid.uuid4().hex
        own.mkdir()
        return Session(client, own, dict(options))

    def open_tab(request: Any) -> tuple[Session, Session]:
        opened[request.session_hash] = sessions = new_session(), new_session()
        return sessions

    def close_tab(request: Any) -> None:
        stop(*opened.pop(request.session_hash, ()))

    for listener in (open_tab, close_tab):  # gradio passes the request to an argument of this type
        listener.__annotations__["request"] = gr.Request

    def stop(*sessions: Session) -> None:
        for session in sessions:
            session.stop()

    with gr.Blocks(title="Emu", analytics_enabled=False, fill_height=True) as page:
        # Each tab has its own session, so that the other tabs do not change the conversation.
        chat, single = gr.State(None), gr.State(None)
        page.load(open_tab, outputs=[chat, single], show_progress="hidden", queue=False)
        page.unload(close_tab)
        with gr.Accordion("Options", open=False):
            with gr.Row():
                seed = gr.Number(int(options.get("seed", 0)), label="seed", precision=0, minimum=0, maximum=2**32 - 1)
                guidance = gr.Slider(1.0, 20.0, defaults.guidance_scale, label="guidance", step=0.5)
                steps = gr.Slider(1, 100, defaults.steps, label="steps", step=1)
                sampler = gr.Dropdown(
                    [one.value for one in Sampler], value=Sampler(defaults.sampler).value, label="sampler"
                )
            with gr.Row():
                beams = gr.Slider(1, web.max_beams, int(options.get("num_beams", 1)), label="beams", step=1)
                temperature = gr.Slider(0.0, 2.0, float(options.get("temperature", 0.0)), label="temperature")
                length = gr.Number(options.get("max_tokens"), label="text tokens, at most", precision=0, minimum=1)
                system = gr.Textbox(label="system message of a new conversation")
        panel = [seed, guidance, steps, sampler, beams, temperature, length]
        with gr.Tab("Chat"):
            history = gr.Chatbot(label="conversation", elem_id="conversation", height="60vh", buttons=["copy"])
            message = gr.MultimodalTextbox(
                label="question", elem_id="question", file_types=_FILE_TYPES, file_count="multiple", sources=["upload"],
                placeholder="A question; <image> is the position of the next file, files without one come first",
            )  # fmt: skip
            with gr.Row():
                kind = gr.Radio([_TEXT, _IMAGE, _BOTH], value=_TEXT, label="answer", scale=3)
                stop_chat = gr.Button("Stop", elem_id="stop", variant="stop")
                reset = gr.Button("New conversation")
        with gr.Tab("Generate"):
            prompt = gr.MultimodalTextbox(
                label="prompt", elem_id="prompt", file_types=_FILE_TYPES, file_count="multiple", sources=["upload"],
                placeholder="A text, or texts and images; <image> is the position of the next file",
            )  # fmt: skip
            output = gr.Radio([_IMAGE, _BOTH], value=_IMAGE, label="result")
            made_text, made = gr.Markdown(), gr.Gallery(label="images", elem_id="generated", columns=4)
            stop_generate = gr.Button("Stop", variant="stop")
        with gr.Tab("Blend"):
            with gr.Row():
                sources = [
                    gr.Image(
                        type="filepath",
                        height=_HEIGHT,
                        label=name,
                        sources=["upload", "clipboard"],
                        elem_id=f"blend-{i}",
                    )
                    for i, name in enumerate(("first", "second"))
                ]
                blended = gr.Image(label="blend", elem_id="blended", interactive=False, height=_HEIGHT)
            with gr.Row():
                blend, stop_blend = gr.Button("Blend", variant="primary"), gr.Button("Stop", variant="stop")
        with gr.Tab("Edit"):
            with gr.Row():
                original = gr.Image(
                    type="filepath", height=_HEIGHT, label="image", sources=["upload", "clipboard"], elem_id="original"
                )
                edited = gr.Image(label="edited", elem_id="edited", interactive=False, height=_HEIGHT)
            instruction = gr.Textbox(label="instruction", elem_id="instruction")
            with gr.Row():
                edit, stop_edit = gr.Button("Edit", variant="primary"), gr.Button("Stop", variant="stop")

        message.submit(answer, [message, history, chat, kind, *panel], [history, message])
        for reset_event in (reset.click, history.clear):
            reset_event(start, [chat, system], history, queue=False)
        prompt.submit(generate, [prompt, single, output, *panel], [made_text, made])
        blend.click(create_blend, [*sources, single, *panel], blended)
        edit.click(create_edit, [original, instruction, single, *panel], edited)
        for button in (stop_chat, stop_generate, stop_blend, stop_edit):
            button.click(stop, [chat if button is stop_chat else single], queue=False)
    return page.queue(default_concurrency_limit=_CONCURRENT, api_open=False)


def answer(
    message: dict[str, Any], history: Messages, session: Session, kind: str, *panel: Any
) -> Iterator[tuple[Messages, Any]]:
    """Yield the conversation as the answer grows, and the emptied input."""
    files = [Path(name) for name in message["files"]]
    text = message["text"] or ""
    shown = [*history, *({"role": "user", "content": {"path": str(file)}} for file in files)]
    if text:
        shown.append({"role": "user", "content": text})
    empty = {"text": "", "files": []}
    yield shown, empty
    try:
        question = _uploads(text, files)
        for piece in session.ask(question, modalities=_MODALITIES[kind], **request_options(*panel)):
            shown = _with_piece(shown, piece)
            yield shown, empty
    except UserError as error:
        raise _shown_error(error) from None
    if session.stopped:
        yield [*shown, {"role": "assistant", "content": "(stopped)"}], empty


def start(session: Session, system: str) -> Messages:
    """Begin a new conversation; return the empty one."""
    session.stop()
    session.start(system.strip())
    return []


def generate(prompt: dict[str, Any], session: Session, output: str, *panel: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the text and the images of a result as it grows."""
    session.start()
    files, text = [Path(name) for name in prompt["files"]], prompt["text"] or ""
    options = request_options(*panel)
    written, images = "", []
    try:
        if output == _IMAGE and "<image>" not in text:
            pieces = session.create(text, files, **options)
        else:
            pieces = session.ask(_uploads(text, files), modalities=_MODALITIES[output], **options)
        for piece in pieces:
            if isinstance(piece, Path):
                images.append(str(piece))
            else:
                written += piece
            yield written, images
    except UserError as error:
        raise _shown_error(error) from None


def create_blend(first: str | None, second: str | None, session: Session, *panel: Any) -> str | None:
    """Return the image between two images."""
    return _create("", [first, second], session, *panel)


def create_edit(original: str | None, instruction: str, session: Session, *panel: Any) -> str | None:
    """Return the image after an image and an instruction."""
    return _create(instruction, [original], session, *panel)


def request_options(
    seed: float, guidance: float, steps: float, sampler: str, beams: float, temperature: float, length: float | None
) -> dict[str, Any]:
    """Return the panel's values as fields of a request."""
    options = {
        "seed": int(seed), "guidance_scale": guidance, "num_inference_steps": int(steps), "sampler": sampler,
        "num_beams": int(beams), "temperature": temperature,
    }  # fmt: skip
    return options | ({"max_tokens": int(length)} if length else {})


def _create(text: str, files: Sequence[str | None], session: Session, *panel: Any) -> str | None:
    session.start()
    try:
        if None in files:
            raise UserError("Upload an image first.")
        paths = [Path(file) for file in files if file]
        images = [*session.create(text, paths, **request_options(*panel))]
    except UserError as error:
        raise _shown_error(error) from None
    return str(images[0]) if images else None


def _uploads(text: str, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the content of a question. Only uploads are files: a name in the text is text."""
    return question_parts(text, files, named_files=False)


def _with_piece(shown: Messages, piece: str | Path) -> Messages:
    """Return the messages with one more piece of the answer."""
    if isinstance(piece, Path):
        return [*shown, {"role": "assistant", "content": {"path": str(piece)}}]
    last = shown[-1] if shown else {}
    if last.get("role") == "assistant" and isinstance(last["content"], str):
        return [*shown[:-1], {"role": "assistant", "content": last["content"] + piece}]
    return [*shown, {"role": "assistant", "content": piece}]


def _shown_error(error: UserError) -> Exception:
    import gradio as gr

    return gr.Error(str(error), print_exception=False)
