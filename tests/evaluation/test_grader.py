"""MM-Vet through a real OpenAI client and a local endpoint that grades by a rule."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from emu_jax.cli import evaluate
from emu_jax.errors import UserError
from emu_jax.evaluation.grader import grading_prompt
from tests.evaluation.layouts import write_layout

ANSWERS = {"v1_0": "right", "v1_1": "half", "v1_2": "wrong"}


class Endpoint(BaseHTTPRequestHandler):
    """Grades "right" 1.0, "half" 0.5 after a first answer that is no number, and anything else 0.0."""

    requests: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.requests.append(prompt)
        row = prompt.splitlines()[-2 if prompt.endswith(": ") else -1]
        text = "1.0" if "| right |" in row else "0.0"
        if "| half |" in row:
            text = "0.5" if body["temperature"] > 0 else "maybe"
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": choices}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    Endpoint.requests.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_five_gradings_per_answer(endpoint, tmp_path):
    root = write_layout("mmvet", tmp_path / "data")
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("".join(json.dumps({"id": i, "answer": a}) + "\n" for i, a in ANSWERS.items()))
    words = ["--predictions", str(predictions), "--task", "mmvet", "--data", str(root), "--output", str(tmp_path)]
    words += ["--judge-base-url", endpoint, "--judge-model", "rule"]
    evaluate.main(words)
    summary = json.loads((tmp_path / "mmvet/scores.json").read_text())
    assert summary["scores"]["total"] == 50
    assert summary["scores"]["std"] == 0
    assert summary["scores"]["per_capability"] == {"ocr": 50, "math": 50}
    assert summary["protocol"]["grader_runs"] == 5
    assert len(Endpoint.requests) == 5 * 4
    evaluate.main(words)  # all grades are saved
    assert len(Endpoint.requests) == 5 * 4


def test_an_endpoint_that_is_not_there(tmp_path):
    root = write_layout("mmvet", tmp_path / "data")
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("".join(json.dumps({"id": i, "answer": a}) + "\n" for i, a in ANSWERS.items()))
    words = ["--predictions", str(predictions), "--task", "mmvet", "--data", str(root), "--output", str(tmp_path)]
    with pytest.raises(UserError, match=r"The grader at http://127\.0\.0\.1:9/v1 failed"):
        evaluate.main([*words, "--judge-base-url", "http://127.0.0.1:9/v1"])


def test_the_prompt_is_mm_vets():
    lines = grading_prompt("What?", "-1<AND>-5", "x = 3").splitlines()
    assert lines[0].startswith("Compare the ground truth and prediction from AI models")
    assert lines[-1] == "What? | -1 <AND> -5 | x = 3 | "
