"""MediaWiki's markup as plain text, in time that is linear in the length of the text."""

from __future__ import annotations

import html
import re

_COMMENT = "<!--", "-->"
# What these elements hold is no prose.
_DROPPED = (
    "ref",
    "gallery",
    "math",
    "timeline",
    "score",
    "imagemap",
    "templatestyles",
    "syntaxhighlight",
    "source",
)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)[^<>]{0,2000}>")
# "|}" ends a table, but "|}}" a template whose last argument is empty.
_BRACES = re.compile(r"\{\{|\}\}|\{\||\|\}(?!\})|\|\}(?=\}\}(?!\}))|\[\[|\]\]")
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\[\]]{1,2000}(?: ([^\[\]\n]{0,500}))?\]")
_QUOTES = re.compile(r"'{2,5}")
_HEADING = re.compile(r"^(={1,6}) ?([^\n]{0,1000}?) ?\1[ \t]{0,9}$", re.MULTILINE)
_LIST = re.compile(r"^[*#:;]{1,20}[ \t]?", re.MULTILINE)
MOST_NESTED = 100  # of what stands within one another; MediaWiki's own limit for templates is 40
_OPENERS = {"}}": "{{", "|}": "{|", "]]": "[["}
_SWITCH = re.compile(r"__[A-Z]{3,30}__")
_RULE = re.compile(r"^-{4,80}[ \t]{0,9}$", re.MULTILINE)
# Links into these namespaces show no text of the article: English, and what other languages call them.
_NOT_PROSE = frozenset(
    "file image media category datei bild kategorie fichier catégorie archivo categoría immagine categoria файл"
    " категория ファイル カテゴリ 文件 分类".split()
)


def wikitext_to_text(text: str) -> str:
    """Return the prose of an article.

    Templates, tables, references, files, categories and comments are left out; links become what they show, headings
    and lists plain lines. Markup that is never closed is kept as text.
    """
    text = _without_comments(text)
    text = _without_elements(text)
    text = _without_braces(text)
    text = _EXTERNAL.sub(lambda found: found[1] or "", text)
    text = _QUOTES.sub("", text)
    text = _SWITCH.sub("", _RULE.sub("", text))
    text = _HEADING.sub(r"\2", text)
    text = _LIST.sub("", text)
    text = html.unescape(_TAG.sub("", text)).replace("\u00a0", " ")
    text = "\n".join(line.strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _without_comments(text: str) -> str:
    begin, end = _COMMENT
    parts = []
    read = 0
    while (start := text.find(begin, read)) >= 0 and (stop := text.find(end, start)) >= 0:
        parts.append(text[read:start])
        read = stop + len(end)
    return "".join([*parts, text[read:]])


def _without_elements(text: str) -> str:
    """Leave out elements whose content is no prose."""
    parts = []
    read = 0
    opened: str | None = None
    for tag in _TAG.finditer(text):
        name = tag[2].lower()
        if name not in _DROPPED or tag[0].endswith("/>"):
            if opened is None and name in _DROPPED:
                parts.append(text[read : tag.start()])
                read = tag.end()
            continue
        if opened is None and not tag[1]:
            opened, begin = name, tag.start()
            parts.append(text[read:begin])
            read = begin
        elif opened == name and tag[1]:
            opened, read = None, tag.end()
    return "".join([*parts, text[read:]])


def _without_braces(text: str) -> str:
    """Leave out templates and tables, and put in the place of links what they show; nested ones included."""
    # What stands between brackets is gathered on a stack, one list of parts for each that is open.
    stack: list[tuple[str, list[str]]] = [("", [])]
    read = 0
    for found in _BRACES.finditer(text):
        stack[-1][1].append(text[read : found.start()])
        read = found.end()
        mark = found[0]
        if mark in _OPENERS.values() and len(stack) <= MOST_NESTED:
            stack.append((mark, []))
            continue
        opener = _OPENERS.get(mark)
        if stack[-1][0] != opener:
            stack[-1][1].append(mark)
            continue
        _, inner = stack.pop()
        if opener == "[[":
            stack[-1][1].append(_shown("".join(inner)))
    # What was never closed is text.
    return "".join(part for mark, parts in stack for part in (mark, *parts)) + text[read:]


def _shown(link: str) -> str:
    """Return what a link shows."""
    target, bar, label = link.partition("|")
    space, colon, _ = target.partition(":")
    if colon and space.strip().lower() in _NOT_PROSE:
        return ""
    if bar:
        return label.rpartition("|")[2] if "|" in label else label
    return target.removeprefix(":")
