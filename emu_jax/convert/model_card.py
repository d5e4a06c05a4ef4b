"""The model card of an exported model: the README.md that the Hugging Face Hub shows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from emu_jax.checkpoints.model_config import find_config, read_object
from emu_jax.models.config import EmuConfig


def model_card(
    config: EmuConfig,
    *,
    dtype: str,
    license: str | None = None,
    base_model: str | None = None,
    training: Mapping[str, Any] | None = None,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return the README.md of the folder.

    Args:
      config: of the Emu.
      dtype: of the tensors.
      license: identifier on the Hugging Face Hub. None: "other".
      base_model: identifier on the Hub of the model that this one was trained from.
      training: config of the run, by the names of its options.
      scores: printed scores by task and name.
    """
    metadata = [f"license: {license or 'other'}", "library_name: transformers", "pipeline_tag: image-text-to-text"]
    metadata += [f"base_model: {base_model}"] if base_model else []
    size, queries = config.vision.image_size, config.causal_former.num_image_tokens
    parts = ["---", *metadata, "---", "", "# Emu", "", _CARD.format(size=size, queries=queries, dtype=dtype)]
    if license is None:
        parts += ["## License", "", "Not stated. The licenses of the weights that training started from apply.", ""]
    if training:
        parts += ["## Training", "", _table(("option", "value"), sorted(training.items()))]
    if scores:
        rows = [(f"{task}: {name}", value) for task, values in scores.items() for name, value in values.items()]
        parts += ["## Evaluation", "", _table(("score", "value"), rows)]
    return "\n".join(parts)


def training_options(checkpoint: Path) -> dict[str, Any]:
    """Return the config of the run that wrote a checkpoint, by the names of its options; empty for other models."""
    path = find_config(checkpoint)
    values = read_object(Path(path)) if path is not None else {}
    if not isinstance(values.get("model"), dict):
        return {}
    return traverse_util.flatten_dict({name: value for name, value in values.items() if name != "model"}, sep=".")


def _table(titles: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {titles[0]} | {titles[1]} |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in rows)]
    return "\n".join(lines) + "\n"


_CARD = """\
One autoregressive model over text and images ([Sun et al., ICLR 2024](https://arxiv.org/abs/2307.05222)). It reads
images of {size} x {size} pixels as {queries} embeddings, and generates text, or the {queries} embeddings of an image.
Exported by emu_jax in {dtype}.

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("DIR", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("DIR", trust_remote_code=True)

inputs = processor("<image>a photo of", images=["cat.jpg"])
ids = model.generate(**inputs, num_beams=5, max_new_tokens=20)
print(processor.decode(ids[0, inputs["input_ids"].shape[1]:]))

embeddings = model.generate_embeddings(**processor("a red circle", open_image=True))  # [1, {queries}, D]
```
"""
