"""Sizes and special tokens of an Emu, in the config.json of `export-torch --format transformers`."""

from typing import Any

from transformers import PretrainedConfig


class EmuConfig(PretrainedConfig):
    """The sizes of the three parts of an Emu, and the ids of its special tokens.

    Args:
      vision: sizes of the EVA-CLIP vision encoder.
      causal_former: sizes of the T5 decoder blocks that turn an image into `num_image_tokens` embeddings.
      language_model: sizes of the LLaMA decoder.
      boi_token_id, eoi_token_id, image_token_id: ids of `[IMG]`, `[/IMG]` and `<image>`.
    """

    model_type = "emu"
    _auto_class = "AutoConfig"  # `save_pretrained` writes the code too

    def __init__(
        self,
        vision: dict[str, Any] | None = None,
        causal_former: dict[str, Any] | None = None,
        language_model: dict[str, Any] | None = None,
        boi_token_id: int = 32001,
        eoi_token_id: int = 32002,
        image_token_id: int = 32003,
        **kwargs: Any,
    ) -> None:
        self.vision = vision or {}
        self.causal_former = causal_former or {}
        self.language_model = language_model or {}
        self.boi_token_id = boi_token_id
        self.eoi_token_id = eoi_token_id
        self.image_token_id = image_token_id
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int | None:
        """The number of token ids."""
        return self.language_model.get("vocab_size")

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.language_model["vocab_size"] = size

    @property
    def hidden_size(self) -> int | None:
        """The width of the decoder and of the visual embeddings."""
        return self.language_model.get("width")

    @property
    def num_hidden_layers(self) -> int | None:
        """The number of layers of the decoder."""
        return self.language_model.get("num_layers")

    @property
    def max_position_embeddings(self) -> int | None:
        """The maximum number of tokens."""
        return self.language_model.get("max_length")
