"""Remove what does not describe a video from the captions of WebVid.

Captions of stock footage name the date and the location of a recording, its resolution and its format. Emu removes such
text by rules that are not published. These are ours; each pattern has an example next to it.
"""

import re

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_YEAR = r"(?:18|19|20)\d\d"
_DATE = (
    rf"(?:(?:circa|ca\.?|c\.)\s*)?(?:(?:\d{{1,2}}(?:st|nd|rd|th)?\s+)?{_MONTH}(?:\s+\d{{1,2}}(?:st|nd|rd|th)?)?,?"
    rf"\s*{_YEAR}"
    rf"|\d{{1,2}}[./-]\d{{1,2}}[./-](?:{_YEAR}|\d\d)|(?:circa|ca\.?|c\.)\s*{_YEAR}s?)"
)
_FORMAT = (
    r"(?:ultra\s*hd|uhd|full\s*hd|fhd|\d+\s*fps|\d+\s*frames per second|(?:480|720|1080|2160|4320)[pi]"
    r"|[468]k(?:\s+(?:uhd|video|footage|clip|resolution))?"
    r"|1920\s*x\s*1080|3840\s*x\s*2160|4096\s*x\s*2160|pro\s*res(?:\s*(?:422|4444))?(?:\s*hq)?|h\.?26[45])"
)
_STOCK = (
    r"(?:royalty[- ]free\s+)?stock\s+(?:footage|videos?|clips?)(?:\s+clip)?|royalty[- ]free(?:\s+(?:footage|video))?"
)

_RULES = (
    re.compile(r"https?://\S+|www\.\S+", re.I),  # https://example.com
    # KYIV, UKRAINE - MAY 12, 2019: people walk
    re.compile(rf"^[^:.]{{0,80}}?(?:[-–—,(]|^)\s*{_DATE}\)?\s*[:.\-–—]\s*(?=\S)", re.I),
    re.compile(rf"[\s,(\-–—]*\b(?:in|on|at)?\s*\b{_DATE}\)?(?=\s*[.,;:)]*\s*$)", re.I),  # people walk. may 12, 2019
    re.compile(rf"[\s,]*\(?\b(?:in\s+|shot (?:in|on)\s+)?{_FORMAT}\b\)?", re.I),  # sunset over the sea, 4k uhd
    re.compile(rf"[\s,\-–—]*\b(?:{_STOCK})\b", re.I),  # sunset - stock footage
    re.compile(r"\b(?:clip|video|footage)\s*(?:id|no\.?|number|#)\s*:?\s*#?\d+", re.I),  # clip id 1023
)
_SPACE = re.compile(r"\s+")
_EMPTY = re.compile(r"\(\s*\)|\[\s*\]")
_DOUBLED = re.compile(r"\s*([,;:])(?:\s*[,;:.])+|\s+(?=[,.;:])")
_ENDS = " ,;:-–—|/_#*"


def clean_caption(text: str) -> str:
    """Return the caption without dates, locations of a recording, formats and terms of stock footage; perhaps empty.

    clean_caption("KYIV, UKRAINE - MAY 12, 2019: People walk in a park, 4k uhd.") -> "People walk in a park."
    """
    text = _SPACE.sub(" ", text).strip()
    for rule in _RULES:
        text = rule.sub("", text)
    text = _EMPTY.sub("", text)
    text = _DOUBLED.sub(lambda match: match[1] or "", text)
    text = _SPACE.sub(" ", text).strip(_ENDS)
    return text if re.search(r"\w", text) else ""
