"""How byte-level vocabularies cut text before merging, by the name that GGUF gives the way (`tokenizer.ggml.pre`)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What stands before the merges of a vocabulary.

    Attributes:
        pattern: The pieces as a regular expression; "": GPT-2's, which the library has built in.
        digits: Whether every digit is first cut off, blanks before it included.
        normalize: Whether text is composed first (Unicode's NFC).
        ignore_merges: Whether a piece that is itself a token is taken whole, whatever the merges say.
        add_bos: Whether a text begins with the beginning token unless the file says otherwise.
    """

    pattern: str = ""
    digits: bool = False
    normalize: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def apply(self, tokenizer: Tokenizer) -> None:
        """Make a tokenizer's normalizer and pre-tokenizer those of the recipe."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.pattern))
        tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
        if self.normalize:
            tokenizer.normalizer = normalizers.NFC()


_LLAMA3 = Recipe(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", ignore_merges=True, add_bos=True)

# As the models' own tokenizers cut (llama.cpp composes no text; transformers' reader knows no "smollm").
RECIPES = {
    "gpt-2": Recipe(),
    "smollm": Recipe(digits=True),
    "qwen2": Recipe(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}", normalize=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}


def recipe_name(parts: dict[str, Any]) -> str | None:
    """Return the name of the recipe by which a tokenizer cuts text; None where it has no name here.

    Args:
        parts: The tokenizer as `Tokenizer.to_str` gives it, decoded.
    """
    for name, recipe in RECIPES.items():
        made = Tokenizer(models.BPE(ignore_merges=recipe.ignore_merges))
        recipe.apply(made)
        if _essence(json.loads(made.to_str())) == _essence(parts):
            return name
    return None


def _essence(parts: dict[str, Any]) -> tuple[Any, ...]:
    """Return what decides how text is cut; trim_offsets only says where tokens were."""
    before = json.loads(json.dumps(parts["pre_tokenizer"]))
    for step in (before or {}).get("pretokenizers", [before]):
        (step or {}).pop("trim_offsets", None)
    return parts["normalizer"], before, bool(parts["model"].get("ignore_merges"))
