"""What a saved page holds beside what it says."""

from __future__ import annotations

from html.parser import HTMLParser

from nbllm.core.report.examples import examples_script


class _Scripts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self._inside = dict(attrs).get("type") != "application/json"
            self.found += [""] if self._inside else []

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def foreign_scripts(page: str) -> list[str]:
    """The scripts of a page that are not the browser of its examples."""
    parser = _Scripts()
    parser.feed(page)
    return [text for text in parser.found if not text.startswith(examples_script())]
