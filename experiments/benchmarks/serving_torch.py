"""The same decoder in plain transformers: `generate` behind a queue, one request after the other.

    .venv-parity/bin/python experiments/benchmarks/serving_torch.py LLAMA_FOLDER PROMPTS.json

PROMPTS.json holds a list of {"tokens": [...], "new_tokens": n}. Prints seconds and new tokens as JSON.
Started by serving.py, which exports the folder from the model that it serves.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import transformers


@torch.no_grad()
def main() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    requests = json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(1)  # faster for models of this size than two threads that wait for each other

    def answer(request: dict) -> int:
        tokens, count = torch.tensor([request["tokens"]]), request["new_tokens"]
        written = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return written.shape[1] - tokens.shape[1]

    answer(requests[0])
    started = time.perf_counter()
    tokens = sum(map(answer, requests))
    print(json.dumps({"seconds": time.perf_counter() - started, "tokens": tokens, "torch": torch.__version__,
                      "transformers": transformers.__version__}))  # fmt: skip


if __name__ == "__main__":
    main()
