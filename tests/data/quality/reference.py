"""The rules in plain Python, written from the papers and from what the docstrings say, without the kernels."""

import functools
from collections import Counter

import regex

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
NGRAMS = range(5, 11)


@functools.cache
def is_a(pattern, character):
    return regex.fullmatch(pattern, character, flags=regex.V1) is not None


@functools.cache
def extender(c):
    return is_a(r"[\p{M}\u1160-\u11ff\ud7b0-\ud7ff]", c)


@functools.cache
def unspaced(c):
    letter = is_a(r"[\p{L}\p{Nl}]", c) and not extender(c)
    return letter and is_a(r"[\p{lb=ID}\p{lb=CJ}\p{lb=SA}\p{lb=AK}\p{lb=AS}\p{lb=AP}\p{Tibetan}]", c)


@functools.cache
def begins(c):
    return is_a(r"[\p{L}\p{N}]", c) and not extender(c)


@functools.cache
def words(text):
    found = []
    for run in text.split():
        word = ""
        for c in run:
            if begins(c):
                cut = any(is_a(r"[\p{L}\p{N}]", w) for w in word) if unspaced(c) else any(map(unspaced, word))
                if cut:
                    found.append(word)
                    word = ""
            word += c
        found.append(word)
    return found


@functools.cache
def size(text):
    return sum(not extender(c) for c in text)


def share(part, whole):
    return part / whole if whole else 0.0


def plain(word):
    return any(is_a(r"[^\p{P}\p{S}\p{C}]", c) for c in word)


def gopher(text, as_code=False):
    tokens, lines = words(text), text.splitlines()
    if as_code:
        counted = [w for w in tokens if plain(w)]
        mean = share(sum(map(len, counted)), len(counted))
    else:
        counted, lines = tokens, [line for line in lines if line.strip()]
        spaced = [w for w in tokens if not any(map(unspaced, w))]
        mean = share(sum(map(size, spaced)), len(spaced)) if spaced or not tokens else float("nan")
    ellipses = text.count("...") + text.count("…")
    return {
        "gopher/words": len(counted),
        "gopher/mean_word_length": mean,
        "gopher/hashes_per_word": share(text.count("#"), len(tokens)),
        "gopher/ellipses_per_word": share(ellipses, len(tokens)),
        "gopher/bullet_lines": share(sum(line.lstrip().startswith(("•", "-")) for line in lines), len(lines)),
        "gopher/ellipsis_lines": share(
            sum(line.rstrip().endswith(("...", "…")) for line in lines), len(lines)
        ),
        "gopher/letter_words": share(
            sum(any(is_a(r"\p{L}", c) for c in word) for word in tokens), len(tokens)
        ),
        "gopher/stop_words": len(STOP_WORDS & set(tokens)),
    }


def filled_lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text, most=None):
    """Return the paragraphs of the first `most` lines that are not blank."""
    found, number = [[]], 0
    for line in text.splitlines():
        if line.strip():
            number += 1
            if number == (most or 0) + 1 and most:
                break
            found[-1].append(line.strip())
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def repeated(units):
    """Number of units that repeat an earlier one, and their total size."""
    seen, number, characters = set(), 0, 0
    for unit in units:
        if unit in seen:
            number += 1
            characters += size(unit.replace("\n", ""))
        seen.add(unit)
    return number, characters


def covered(tokens, n, starts):
    inside = {word for start in starts for word in range(start, start + n)}
    return sum(size(tokens[word]) for word in inside)


def repetition(text, most=None):
    lines, parts, tokens = filled_lines(text)[:most], paragraphs(text, most), words(text)[:most]
    shares = {}
    for name, units in (("line", lines), ("paragraph", parts)):
        number, characters = repeated(units)
        shares[f"gopher/duplicate_{name}s"] = share(number, len(units))
        whole = sum(size(unit.replace("\n", "")) for unit in units)
        shares[f"gopher/duplicate_{name}_characters"] = share(characters, whole)
    total = sum(map(size, tokens))
    for n in range(2, 11):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        if n < 5:
            top, count = Counter(grams).most_common(1)[0] if grams else (None, 0)
            starts = [i for i, gram in enumerate(grams) if gram == top] if count > 1 else []
            shares[f"gopher/top_{n}_gram"] = share(covered(tokens, n, starts), total)
        else:
            seen, starts = set(), []
            for i, gram in enumerate(grams):
                if gram in seen:
                    starts.append(i)
                seen.add(gram)
            shares[f"gopher/duplicate_{n}_grams"] = share(covered(tokens, n, starts), total)
    return shares


def fineweb(text):
    lines = filled_lines(text)
    ended = sum(is_a(r"[\p{Sentence_Terminal}\p{Quotation_Mark}]", line[-1]) for line in lines)
    return {
        "fineweb/ended_lines": share(ended, len(lines)),
        "fineweb/short_lines": share(sum(size(line) < 30 for line in lines), len(lines)),
        "fineweb/duplicate_characters": share(repeated(lines)[1], sum(map(size, lines))),
        "fineweb/line_feeds_per_word": share(text.count("\n"), len(words(text))),
    }


CITATION = regex.compile(r"\[\p{Nd}*\]|\[edit\]|\[citation needed\]")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def sentences(line):
    """A mark, what closes behind it, and space or the end; or a mark that is not ASCII, whatever follows."""
    text = CITATION.sub("", line)
    marks, closing = r"\p{Sentence_Terminal}", r"[\p{Quotation_Mark}\p{Pe}\p{Pf}]"
    pieces, piece, ended, wide = [], "", False, False
    for c in text:
        if is_a(marks, c):
            piece, ended, wide = piece + c, True, wide or not c.isascii()
        elif ended and is_a(closing, c):
            piece += c
        elif c.isspace():
            if ended:
                pieces.append(piece)
                piece = ""
            piece, ended, wide = piece + c if piece else "", False, False
        else:
            if ended and wide:
                pieces.append(piece)
                piece = ""
            piece, ended, wide = piece + c, False, False
    return [*pieces, piece] if piece.strip() else pieces


def lower(text):
    return "".join(c.lower() if c.isascii() else c for c in text)


def c4(text, as_code=False, end=True):
    """Return the lines that stay, without the space at their ends, and what the pages are judged by."""
    min_words = 3 if as_code else 5
    counts = {"c4/sentences": 0, "c4/lorem_ipsum": 0, "c4/curly_brackets": 0}
    if not as_code:
        counts["c4/lorem_ipsum"] = int("lorem ipsum" in lower(text))
        counts["c4/curly_brackets"] = text.count("{")
    kept = []
    for raw in text.splitlines():
        line = raw.strip()
        if not line or (as_code and max(map(len, line.split())) > 1000):
            continue
        bare = CITATION.sub("", line)
        if as_code:
            ends = bare.endswith((".", "?", "!", '"', "'")) and not bare.endswith("...")
        else:
            last = bare.rstrip()[-1:]
            ends = bool(last) and is_a(r"[\p{Sentence_Terminal}\p{Quotation_Mark}]", last)
        number = len(line.split()) if as_code else len(words(line))
        if (end and not ends) or number < min_words:
            continue
        if as_code:
            counts["c4/lorem_ipsum"] += "lorem ipsum" in lower(line)
        if "javascript" in lower(line):
            continue
        if as_code:
            counts["c4/curly_brackets"] += line.count("{")
        if any(phrase in lower(line) for phrase in POLICY):
            continue
        counts["c4/sentences"] += len(sentences(line))
        kept.append(bare.strip())
    return kept, counts


NOUNS = "like share comment retweet repost quote bookmark upvote downvote download view follower".split()
COUNTER = regex.compile(
    rf"[^\p{{L}}\p{{N}}]*[0-9][0-9.,]*[kmb]?[\s\x1c-\x1f]+(?:{'|'.join(NOUNS)})s?[^\p{{L}}\p{{N}}]*"
)


def refinedweb(text):
    """Return what stays of each line that is not blank, and the share of words removed."""
    kept, removed, total = [], 0, 0
    for line in filled_lines(text):
        number = len(words(line))
        total += number
        characters = [c for c in line if not c.isspace() and not extender(c)]
        upper = sum(is_a(r"\p{Lu}", c) for c in characters)
        numbers = all(is_a(r"\p{N}", c) for c in characters)
        counter = COUNTER.fullmatch(lower(line))
        if upper > 0.5 * len(characters) or (characters and numbers) or counter or number == 1:
            removed += number
            continue
        if number <= 10:
            folded, start, stop, spans = lower(line), 0, len(line), []
            if folded.startswith("sign-in"):
                spans.append((0, 7))
                start = 7
            if folded.endswith(("read more...", "read more…")):
                stop = folded.rindex("read more")
            while "items in cart" in folded[start:stop]:
                place = folded.index("items in cart", start)
                spans.append((place, place + 13))
                start = place + 13
            if stop < len(line):
                spans.append((stop, len(line)))
            removed += sum(len(words(line[a:b])) for a, b in spans)
            for a, b in reversed(spans):
                line = line[:a] + line[b:]
        kept.append(line)
    return kept, share(removed, total)
