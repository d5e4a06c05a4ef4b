"""The task that docs/how-to/evaluation.md adds runs as written there."""

from __future__ import annotations

import re

from emu_jax.evaluation.api import evaluate
from tests.evaluation.layouts import dump, image


def test_the_task_of_the_docs(tiny, root, tmp_path):
    page = (root / "docs/how-to/evaluation.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    scope: dict = {}
    exec(source, scope)
    for n in range(2):
        image(tmp_path / f"counting/images/{n}.png", n)
    rows = [{"id": n, "image": f"{n}.png", "question": "How many dogs?", "answer": "two"} for n in range(2)]
    dump(tmp_path / "counting/test.json", rows)
    result = evaluate(tiny, scope["TASK"], tmp_path, output=tmp_path / "out", batch_size=2)
    assert result.headline.count == 2
    assert (tmp_path / "out/counting/predictions.jsonl").is_file()
