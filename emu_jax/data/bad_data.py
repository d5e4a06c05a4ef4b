"""Errors for data that cannot be used."""

from emu_jax.errors import UserError


class BadData(UserError):
    """Data that cannot be used.

    Attributes:
      reason: the same text for the same fault, without names and numbers, so that faults can be counted by reason.
      detail: names, numbers and the error of a library; may be empty.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


class DecodeError(BadData):
    """An image or video that cannot be decoded; the message does not contain the file name."""


class RecordError(BadData):
    """A record of a data set that cannot be converted to a document."""


class NotDownloaded(RecordError):
    """A record whose image or video is absent because its download failed."""
