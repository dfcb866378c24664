"""Documents that touch every rule: real text, edited; words of a few letters, repeated; characters of all scripts."""

import random

import nbllm as nb

ALPHABETS = (
    "ab",
    "abcdefgh",
    "ABCdef#",
    "012 9,.",
    "éàüöñ",
    "абвгд",
    "中文字符日本",
    "かなカナー",
    "กขคิ์า",
    "ہےاور",
    "e\u0301o\u0308",
    "각\u1100\u1161\u11a8",
    "…•-#.",
    "\"'」)",
    "!?。\uff01",
    "\u200d👩🏽\U000e0041",
    "{}",
)
GAPS = (
    " ",
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u3000",
    "\x0b",
    "\u2028",
    "\x1c",
    "\n \n",
    "\r",
    "",
)
PHRASES = (
    "the",
    "of",
    "and",
    "...",
    "- item",
    "# title",
    "lorem ipsum",
    "use cookies",
    "Javascript",
    "[1]",
    "1,204 likes",
)


def random_document(draw):
    words = [
        "".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 6)))
        for _ in range(draw.randint(1, 12))
    ]
    words += draw.sample(PHRASES, 3)
    words += ["".join(chr(draw.choice((draw.randrange(0x250), draw.randrange(0xD800)))) for _ in range(3))]
    gaps = draw.sample(GAPS, 3)
    return "".join(draw.choice(words) + draw.choice(gaps) for _ in range(draw.randint(0, 70)))


def edited_document(draw, pages):
    lines = draw.choice(pages).splitlines()
    start = draw.randrange(max(len(lines) - 12, 1))
    lines = lines[start : start + draw.randint(1, 14)]
    for _ in range(draw.randint(0, 5)):
        place = draw.randrange(len(lines))
        kind = draw.randrange(5)
        if kind == 0:
            lines.insert(place, lines[draw.randrange(len(lines))])
        elif kind == 1:
            lines[place] = (
                draw.choice(("• ", "- ", "# ", ""))
                + lines[place]
                + draw.choice((".", "...", "…", "!", '"', ""))
            )
        elif kind == 2:
            lines.insert(place, "")
        elif kind == 3:
            lines.insert(place, draw.choice(PHRASES) + " " + lines[place])
        else:
            lines[place] = lines[place].upper()
    return "\n".join(lines)


def documents(count, seed=0):
    """Return `count` documents, the empty and the nearly empty among them."""
    draw = random.Random(seed)
    pages = nb.data.load("pydocs")["text"]
    made = ["", " ", "\n", "…", "\r\n", "a", "a\n", "\na", "\n\n\n", "-", "....", "中", "\u0301"]
    while len(made) < count:
        made.append(random_document(draw) if draw.random() < 0.5 else edited_document(draw, pages))
    return made[:count]
