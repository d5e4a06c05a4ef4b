"""Options for laying documents out as token sequences."""

import dataclasses
import enum

from emu_jax.bounds import Checked, Count, Fraction, NumFrames, Tokens
from emu_jax.errors import UserError


class Regress(enum.Enum):
    """The images of a document that have a regression loss."""

    ALL = "all"  # as in the paper
    AFTER_TEXT = "after_text"  # images with text before them, as needed for text-to-image generation
    NONE = "none"


class SystemMessage(enum.Enum):
    """The system message of a chat that has none."""

    NONE = "none"
    RELEASE = "release"  # SYSTEM_IMAGE or SYSTEM_VIDEO, for chats with an image or a video


class Answers(enum.Enum):
    """The answers of a PREFERENCE that are in its sequence."""

    CHOSEN = "chosen"  # as in a chat
    BOTH = "both"  # two documents next to each other, for the stage dpo


@dataclasses.dataclass(frozen=True)
class SequenceConfig(Checked):
    """Options for the layout of documents.

    Attributes:
      length: maximum number of tokens in a sequence (at most L, the length of a row).
      max_images: maximum number of images in a sequence (at most I, the image slots of a row). A PAGE loses the images
        after the first `max_images` (the paper: 5), a STORYBOARD or CHAT ends before the next image.
      num_image_tokens: N, `<image>` tokens per image.
      frames: T, frames per video.
      image_first: probability that the image (or video) of a PAIR or VIDEO comes before its text. Emu2 uses 0.5.
      page_image_first: probability that an image of a PAGE stays before its matched sentence instead of moving after
        it. 1 keeps the order of the page.
      predict_boi: train the position before `[IMG]` to predict it (the release does not).
      regress: the images with a regression loss. Images of the user in a chat never have one.
      system_message: for chats without one.
      answers: of a PREFERENCE; with BOTH, other documents are refused.
    """

    length: Tokens
    max_images: Count
    num_image_tokens: Tokens = 32
    frames: NumFrames = 8
    image_first: Fraction = 0.5
    page_image_first: Fraction = 1.0
    predict_boi: bool = False
    regress: Regress = Regress.ALL
    system_message: SystemMessage = SystemMessage.NONE
    answers: Answers = Answers.CHOSEN

    def __post_init__(self):
        super().__post_init__()
        if self.length < self.image_length + 2:
            raise UserError(
                f"A sequence of {self.length} tokens cannot hold an image of {self.image_length} tokens together with "
                "<s> and </s>; raise length or lower num_image_tokens."
            )

    @property
    def image_length(self) -> int:
        """Tokens of one image: N, plus `[IMG]` and `[/IMG]`."""
        return self.num_image_tokens + 2
