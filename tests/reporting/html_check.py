"""A parser that checks a page: elements are closed in order, nothing is fetched, links point into the page."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = ("meta", "img", "br")


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str | None] = []
        self.links: list[str | None] = []
        self.ids: list[str | None] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.fetched += [found[name] for name in ("src", "srcset") if name in found]
        self.links += [found["href"]] if "href" in found else []
        self.ids += [found["id"]] if "id" in found else []
        assert tag not in ("script", "link", "iframe")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(text: str) -> str:
    """Return `text` after the checks."""
    checker = _Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(str(url).startswith("data:image/png;base64,") for url in checker.fetched)
    assert "url(" not in text
    assert "http" not in text
    assert {str(link).removeprefix("#") for link in checker.links} <= set(checker.ids)
    return text
