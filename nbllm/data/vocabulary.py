"""Expand a vocabulary with the words of a domain, chosen by how many tokens each saves."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.core.html import Raw, escape, fragment, table
from nbllm.core.progress import waiting
from nbllm.core.quantities import counted, number
from nbllm.core.text_table import text_table
from nbllm.data.encoding import encode_text
from nbllm.data.texts import iterate_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LEAST_COUNT = 3  # a rarer word is hardly learned
LONGEST_WORD = 64  # characters
MOST_WORDS = 2_000_000  # counted at once; beyond, the rarest are forgotten
HELD_OUT = 10  # every so many-th document measures and does not choose
MEASURED_BYTES = 100_000
INITIALIZATIONS = ("subtokens", "mean", "random")
_SHOWN = 20
# Settings from which tokenizers of a family make their backend.
_OF_A_CLASS = frozenset(
    ("vocab", "merges", "vocab_file", "merges_file", "tokenizer_file", "tokenizer_object", "tokenizer_class", "backend",
     "added_tokens_decoder", "name_or_path")
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NewToken:
    """A token that was added.

    Attributes:
        text: What it stands for.
        count: How often the texts have it.
        num_subtokens: Tokens that spelt it before.
        id: Its id.
    """

    text: str
    count: int
    num_subtokens: int
    id: int

    @property
    def gain(self) -> int:
        """Tokens that it saves in the texts."""
        return self.count * (self.num_subtokens - 1)


@dataclasses.dataclass(frozen=True)
class Expansion:
    """What was added to a vocabulary, and what it changed; its display is the tables of both.

    Attributes:
        tokens: The new tokens, that which saves most first.
        measured_on: Documents that the figures are of: held out, or those that the words were chosen from where there
            are too few.
        held_out: Whether they were held out.
        tokens_before: Tokens of these documents.
        tokens_after: Tokens of them with the new vocabulary.
        loss_before: Bits a byte of the model; None where it cannot score.
        loss_after: The same with the new vocabulary. Most often it is higher at first: the new rows are to be trained.
    """

    tokens: tuple[NewToken, ...]
    measured_on: int
    held_out: bool
    tokens_before: int
    tokens_after: int
    loss_before: float | None
    loss_after: float | None

    @property
    def saved(self) -> float:
        """Share of the tokens that the new vocabulary saves."""
        return 1 - self.tokens_after / self.tokens_before if self.tokens_before else 0.0

    def _figures(self) -> list[tuple[str, str, str]]:
        rows = [("", "before", "after"), ("tokens", number(self.tokens_before), number(self.tokens_after))]
        if self.loss_before is not None and self.loss_after is not None:
            rows.append(("bits a byte", number(self.loss_before), number(self.loss_after)))
        return rows

    def _words(self) -> list[tuple[Any, ...]]:
        return [
            (_visible(each.text), each.count, each.num_subtokens, each.gain) for each in self.tokens[:_SHOWN]
        ]

    @property
    def _note(self) -> str:
        where = "held-out documents" if self.held_out else "documents that the words were chosen from"
        added = counted(len(self.tokens), "tokens")
        return f"{added} added; {self.saved:.1%} fewer tokens in {self.measured_on:,} {where}"

    def __repr__(self) -> str:
        words = [_WORDS, *([str(cell) for cell in row] for row in self._words())]
        return "\n\n".join([self._note, text_table(self._figures()), text_table(words)])

    def _repr_html_(self) -> str:
        header, *rows = self._figures()
        figures = table([[row[0], Raw(escape(row[1])), Raw(escape(row[2]))] for row in rows], header)
        more = len(self.tokens) - _SHOWN
        caption = f"the first {_SHOWN} of {len(self.tokens):,}" if more > 0 else None
        return fragment(
            f"<p>{escape(self._note)}</p>{figures}{table(self._words(), _WORDS, caption=caption)}"
        )


def _visible(text: str) -> str:
    """Return a token as it is written in Python, its spaces as dots: a page shows several as one."""
    return repr(text).replace(" ", "·")


_WORDS = ("new token", "count", "subtokens before", "tokens saved")


def expand_vocabulary(
    lm: Any,
    texts: Dataset | str | os.PathLike[str] | Iterable[str],
    num_tokens: int = 500,
    *,
    initialize: str = "subtokens",
) -> Expansion:
    """Give a model's tokenizer words of a domain as tokens, and its embedding and head rows for them.

    The words that save most tokens in the texts are taken: a word of k tokens that occurs n times saves n (k - 1). What
    a word is follows from how the tokenizer divides text; runs of spaces are words, too. All other text is encoded as
    before, and any text is decoded as before. The tokenizer becomes a new one; whoever holds the old one keeps it. What
    the texts then need, and how well the model predicts them, is measured; the new rows should be trained afterwards:
    `nb.train(lm, texts)`. A GGUF file cannot hold words that are taken whole; a directory can.

    Args:
        lm: The model; it is changed.
        texts: Documents of the domain. One in 10 is held out to measure, if there are so many.
        num_tokens: At most so many new tokens.
        initialize: How the new rows begin: "subtokens", as the mean of the tokens that spelt the word; "mean", as that
            of all rows; "random", drawn about the mean.

    Returns:
        What was added, and the tokens and loss before and after.

    Raises:
        UserError: The tokenizer cannot be expanded, a setting is out of range, or no word occurs often enough.
        DataError: There is no text.
        RunError: A run trains this model.

    Source: Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression", arXiv:2402.09977 (means of
        subtokens).
    """
    if not hasattr(lm, "refuse_while_trained"):
        raise UserError(
            f"The first argument must be a model, not {type(lm).__name__}.",
            hint="nb.data.expand_vocabulary(lm, texts)",
        )
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or num_tokens < 1:
        raise UserError(f"num_tokens must be a whole number of at least 1, not {num_tokens!r}.")
    if initialize not in INITIALIZATIONS:
        raise UserError(
            f"There is no initialization {initialize!r}.", hint=nearest(str(initialize), INITIALIZATIONS)
        )
    lm.refuse_while_trained()
    before = lm.tokenizer
    backend = _expandable(before)
    with waiting("Choosing words for the vocabulary"):
        words, measured, held_out = _read(backend, texts)
        chosen = _choose(backend, words, num_tokens)
    if not chosen:
        raise UserError(
            f"No word of the text that is more than one token occurs {LEAST_COUNT} times.",
            hint="Give more text, or text of another domain.",
        )
    first = 1 + max(before.get_vocab().values())
    parts = {first + place: ids for place, (_, _, ids) in enumerate(chosen)}
    after = _with_words(before, [word for word, _, _ in chosen], first, parts)
    tokens_before, loss_before = _measure(lm, measured)
    lm.tokenizer = after
    try:
        lm.resize(initialize=parts if initialize == "subtokens" else initialize)
    except BaseException:
        lm.tokenizer = before
        raise
    tokens_after, loss_after = _measure(lm, measured)
    tokens = tuple(
        NewToken(after.decode([row]), count, len(ids), row)
        for row, (_, count, ids) in zip(parts, chosen, strict=True)
    )
    return Expansion(
        tokens, len(measured), held_out, tokens_before, tokens_after, loss_before, loss_after
    )  # fmt: skip


def _expandable(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return a tokenizer's backend; raise `UserError` where whole words cannot become tokens of its model."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(backend.model).__name__ if backend is not None else "in Python"
    if kind not in ("BPE", "WordPiece", "Unigram") or backend.pre_tokenizer is None:
        raise UserError(
            f"A tokenizer of this kind ({kind}, no division into words) cannot be expanded by words.",
            hint="tokenizer.add_tokens([...]) and lm.resize(initialize='subtokens') add tokens by name.",
        )
    if kind == "BPE" and "ByteLevel" not in backend.to_str():
        raise UserError(
            "A BPE tokenizer that is not of bytes cannot be expanded by words: it does not divide text into words "
            "before merging.",
            hint="tokenizer.add_tokens([...]) and lm.resize(initialize='subtokens') add tokens by name.",
        )
    return backend


def _read(backend: Any, texts: Any) -> tuple[Counter[str], list[str], bool]:
    """Return how often each word occurs, the documents to measure on, and whether these were held out."""
    words: Counter[str] = Counter()
    held: list[str] = []
    first: list[str] = []
    size, seen = 0, 0
    for text in iterate_texts(texts):
        if not text:
            continue
        seen += 1
        if seen % HELD_OUT == 0 and size < MEASURED_BYTES:
            held.append(text[:MEASURED_BYTES])
            size += len(text)
            continue
        if len(first) < HELD_OUT:
            first.append(text[:MEASURED_BYTES])
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        words.update(
            word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal) if len(word) <= LONGEST_WORD
        )
        least = 1
        while len(words) > MOST_WORDS:
            words = Counter({word: count for word, count in words.items() if count > least})
            least += 1
    if not seen:
        raise DataError("There is no text to choose words from.", hint="Load a source that has text.")
    return words, held or first, bool(held)


def _choose(backend: Any, words: Counter[str], num_tokens: int) -> list[tuple[str, int, list[int]]]:
    """Return the words that save most tokens, each with its count and the tokens that spell it."""
    known = backend.get_vocab()
    unknown = getattr(backend.model, "unk_token", None)
    found = []
    for word, count in words.items():
        if count < LEAST_COUNT or word in known:
            continue
        spelt = backend.model.tokenize(word)
        if len(spelt) > 1 or (len(spelt) == 1 and spelt[0].value == unknown):
            found.append((word, count, [token.id for token in spelt]))
    found.sort(key=lambda each: (-each[1] * (len(each[2]) - 1), each[0]))
    return found[:num_tokens]


def _with_words(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], first: int, parts: dict[int, list[int]]
) -> PreTrainedTokenizerBase:
    """Return a tokenizer in whose model the words are tokens, with ids from `first` on."""
    from tokenizers import Tokenizer

    backend: Any = tokenizer.backend_tokenizer
    saved = json.loads(backend.to_str())
    model = saved["model"]
    if model["type"] == "Unigram":
        # Ids are places in the list. A word's score is a little above that of the pieces that spelt it.
        by_id = {number: piece for piece, number in backend.get_vocab(with_added_tokens=True).items()}
        lowest = min(score for _, score in model["vocab"])
        for number in range(len(model["vocab"]), first):
            model["vocab"].append([by_id.get(number, f"<unused {number}>"), lowest - 100.0])
        scores = dict(map(tuple, model["vocab"]))
        for word, ids in zip(words, parts.values(), strict=True):
            score = sum(scores[by_id[number]] for number in ids)
            model["vocab"].append([word, min(0.0, score + 1e-3)])
    else:
        # Tokens that were added get the ids behind the model's own, unless these have them.
        model["vocab"] |= {token["content"]: token["id"] for token in saved["added_tokens"]}
        model["vocab"] |= {word: first + place for place, word in enumerate(words)}
    if model["type"] == "BPE" and not model.get("ignore_merges"):
        _take_words_whole(backend, saved)
    return _like(tokenizer, Tokenizer.from_str(json.dumps(saved)))


def _like(tokenizer: PreTrainedTokenizerBase, backend: Any) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the general class with another's settings.

    A class of a family, as GPT2Tokenizer, would make its backend anew when it is opened, of vocabulary and merges.
    """
    from transformers import PreTrainedTokenizerFast

    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in _OF_A_CLASS}
    for name in ("padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces"):
        settings[name] = getattr(tokenizer, name)
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{**settings, **tokenizer.special_tokens_map}
    )
    made.chat_template = tokenizer.chat_template
    return made


def _take_words_whole(backend: Any, saved: dict[str, Any]) -> None:
    """Let a BPE model take a word that is a token before it merges anything; see that this changes no older token."""
    added = {token["content"] for token in saved["added_tokens"]}
    changed = next(
        (piece for piece in backend.get_vocab() if piece not in added and _is_split(backend, piece)), None
    )
    if changed is not None:
        raise UserError(
            f"This tokenizer cannot be expanded: its token {changed!r} would be used where it was not before.",
            hint="tokenizer.add_tokens([...]) and lm.resize(initialize='subtokens') add tokens by name.",
        )
    saved["model"]["ignore_merges"] = True


def _is_split(backend: Any, piece: str) -> bool:
    spelt = backend.model.tokenize(piece)
    return len(spelt) != 1 or spelt[0].value != piece


def _measure(lm: Any, texts: Sequence[str]) -> tuple[int, float | None]:
    """Return the tokens of some texts, and the bits a byte that a model which can score needs for them."""
    num_tokens = sum(len(encode_text(lm.tokenizer, text)) for text in texts)
    if "score" not in getattr(lm.model, "can", ()):
        return num_tokens, None
    scores = lm.score(list(texts))
    num_bytes = sum(score.num_bytes for score in scores)
    return num_tokens, -sum(score.log_probability for score in scores) / math.log(2) / num_bytes
