"""An HTML page as the standard library's parser sees it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """What a browser would see: tags, visible text, `<data>` by key, texts of each figure. Checks nesting and ids."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.by_id: dict[str, str] = {}
        self.open_ids: list[tuple[int, str]] = []
        self.text = ""
        self.data: dict[str, tuple[str, str]] = {}
        self.key: tuple[str, str] | None = None
        self.figures: list[list[str]] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag in VOID:
            return
        self.stack.append(tag)
        if name := attributes.get("id"):
            assert name not in self.by_id, f"id {name} twice"
            self.by_id[name] = ""
            self.open_ids.append((len(self.stack), name))
        if tag == "svg":
            self.figures.append([])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "data" and attributes.get("data-key"):
            self.key = (str(attributes["data-key"]), str(attributes["value"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag
        self.open_ids = [(depth, name) for depth, name in self.open_ids if depth <= len(self.stack)]

    def handle_data(self, data: str) -> None:
        if {"style", "title"} & set(self.stack):
            return
        self.text += data
        for _, name in self.open_ids:
            self.by_id[name] += data
        if self.stack and self.stack[-1] == "text":
            self.figures[-1].append(data)
        if "tr" in self.stack and self.rows[-1]:
            self.rows[-1][-1] += data
        if self.key:
            self.data[self.key[0]] = (self.key[1], data)
            self.key = None
