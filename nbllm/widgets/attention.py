"""The attention picture: bertviz's views of our models, in one offline page inside the notebook's cell."""

from __future__ import annotations

import dataclasses
import functools
import html
import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError, nearest
from nbllm.core.html import escape, fragment, table
from nbllm.core.quantities import size
from nbllm.core.terminal import visible
from nbllm.interpret.attention import (
    Chosen,
    Text,
    attention_weights,
    checked_part,
    chosen,
    decoder_ids,
    token_ids,
)
from nbllm.lm import LM

View = Literal["head", "model"]

# Found as files of installed packages, for bertviz asks a network address for the first two; mpld3 and bertviz
# are not imported, since they would load matplotlib and IPython.
_JQUERY = ("XStatic-jQuery", "xstatic/pkg/jquery/data/jquery.min.js")
_D3 = ("mpld3", "mpld3/js/d3.v5.min.js")
_VIEWS = {"head": ("bertviz", "bertviz/head_view.js"), "model": ("bertviz", "bertviz/model_view.js")}

# What bertviz asks of RequireJS, which it needs only to fetch those two; an error is shown instead of nothing.
_LOADER = """
const require = { config() {} };
function requirejs(names, draw) { draw(...names.map((name) => ({ jquery: jQuery, d3 })[name])); }
window.addEventListener("error", (event) => {
  document.body.append(`The picture could not be drawn: ${event.message}`);
});
"""
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
# White in a dark notebook too: bertviz writes in black and mixes its lines with white.
_STYLE = "html { background: #fff; color: #000; color-scheme: light; } body { margin: 8px; font: 14px sans-serif; }"
_HELP = {
    "head": "Tokens on the left attend to tokens on the right: the stronger the line, the larger the weight. The "
    "squares are the heads, in this order: click one to switch it, double-click to show it alone; point at a token to "
    "see its lines alone.",
    "model": "Each cell is a head of a layer. Tokens on the left attend to tokens on the right: the stronger the line, "
    "the larger the weight. Click a cell to see its tokens.",
}

# Measured with Chromium on two cores: 120,000 lines and 5.8 MB are there after 3 s and answer the pointer within
# 1 s; 300,000 lines and 13 MB take 7 s and 2.5 s.
MOST_LINES = 150_000
MOST_BYTES = 6_000_000

_LONGEST_TOKEN = 14  # signs that fit beside the lines
_TALLEST = 760  # pixels; beyond, the picture scrolls
_PAIRS = 12


class AttentionPicture:
    """What each head of a model attends to in a text; shown as bertviz draws it.

    Attributes:
        weights: (layer, head, query, key), those that are shown.
        tokens: The tokens that attend, as they are shown.
        key_tokens: Those that they attend to; the same but for cross-attention.
        layers: The layers' numbers, in the order of `weights`.
        heads: The heads' numbers.
        causal: Whether no token attends to a later one.
        view: "head": one layer at a time, its heads laid over one another. "model": all heads side by side.
    """

    def __init__(
        self,
        weights: Float[Tensor, "layer head query key"],
        tokens: Sequence[str],
        *,
        layers: Sequence[int],
        heads: Sequence[int],
        view: View,
        key_tokens: Sequence[str] | None = None,
        part: str | None = None,
    ) -> None:
        self.weights, self.tokens = weights, [visible(token) for token in tokens]
        self.is_cross, self.part = key_tokens is not None, part
        self.key_tokens = self.tokens if key_tokens is None else [visible(token) for token in key_tokens]
        self.layers, self.heads, self.view = list(layers), list(heads), view
        self.causal = not self.is_cross and not weights.triu(1).any()
        self.document = self._document()

    def __repr__(self) -> str:
        tokens = f"{len(self.tokens)} token{'s' * (len(self.tokens) > 1)}"
        return f"<{self._title()}; {tokens}; {self.view} view of {size(len(self.document))}>"

    def _repr_html_(self) -> str:
        # As an attribute by the library's own function: ours would replace signs that the scripts are made of.
        # Without "allow-same-origin" the page is a stranger to the notebook that it stands in.
        width, height = self._extent()
        frame = (
            f'<iframe sandbox="allow-scripts" title="{escape(self._title())}" srcdoc="{html.escape(self.document)}" '
            f'style="display: block; width: 100%; max-width: {width}px; height: {height}px; box-sizing: border-box; '
            f'border: 1px solid var(--nbllm-line); border-radius: 6px; background: #fff"></iframe>'
        )
        what = (
            f"<strong>{escape(self._title())}</strong> <span class='muted'>{escape(_HELP[self.view])}</span>"
        )
        return fragment(f"<p>{what}</p>{frame}{self._pairs()}")

    def _title(self) -> str:
        layers = f"layer{'s' * (len(self.layers) > 1)} {_listed(self.layers)}"
        kind = {
            "cross": "Cross-attention",
            "encoder": "Attention of the encoder",
            "decoder": "Attention of the decoder",
        }
        heads = f"head{'s' * (len(self.heads) > 1)} {_listed(self.heads)}"
        return f"{kind.get(self.part or '', 'Attention')}: {layers}; {heads}"

    def _document(self) -> str:
        """Return the page in the frame: bertviz's script and what it needs, and nothing from elsewhere."""
        root = "attention"
        parameters = {
            "attention": [
                {"name": None, "attn": [], "left_text": self.tokens, "right_text": self.key_tokens}
            ],
            "default_filter": "0",
            "root_div_id": root,
            "layer": self.layers[0],
            "heads": None,
            "include_layers": self.layers,
            "include_heads": self.heads,
            "total_heads": self._columns(),
            "display_mode": "light",
        }
        # A text may hold "</script>": no "<" stands in the page's data.
        data = (
            json.dumps(parameters)
            .replace("<", "\\u003c")
            .replace('"attn": []', f'"attn": {self._weights_as_json()}', 1)
        )
        # Once: bertviz's marker stands in a comment too.
        script = _packaged(*_VIEWS[self.view]).replace("PYTHON_PARAMS", data, 1)
        choice = '<label>Layer: <select id="layer"></select></label>' if self.view == "head" else ""
        scripts = (_packaged(*_JQUERY), _packaged(*_D3), _LOADER, script)
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f"<title>Attention</title><style>{_STYLE}</style></head>"
            f'<body><div id="{root}">{choice}<div id="vis"></div></div>'
            + "".join(f"<script>{text}</script>" for text in scripts)
            + "</body></html>"
        )

    def _weights_as_json(self) -> str:
        """Return the weights as JSON, three decimals: a line of less is not to be seen."""
        thousandths = (self.weights * 1000).round().int()
        layers = []
        for layer in thousandths:
            heads = []
            for head in layer.tolist():
                # The model view draws a line for each number it gets; what a causal mask hides is always nothing.
                short = self.view == "model" and self.causal
                rows = [row[: i + 1] for i, row in enumerate(head)] if short else head
                heads.append(_json_list(_json_list(_DECIMALS[n] for n in row) for row in rows))
            layers.append(_json_list(heads))
        return _json_list(layers)

    def _columns(self) -> int:
        """Return by how many heads bertviz divides its width; few heads would become very large."""
        return max(len(self.heads), 8)

    def _extent(self) -> tuple[int, int]:
        """Return the pixels that the picture needs, by bertviz's own measures; beyond the tallest it scrolls."""
        num_tokens = max(len(self.tokens), len(self.key_tokens))
        if self.view == "head":
            width, height = max(110 + 115 + 110, 20 * len(self.heads)), 22.5 * num_tokens + 30 + 24
        else:
            cell = 7 * 12 / self._columns() * num_tokens + 10
            width, height = 970, max(cell * len(self.layers) + 38, 18 * num_tokens + 55)
        return width + 50, int(min(height + 30, _TALLEST))

    def _pairs(self) -> str:
        """Return the strongest pairs as a table: all there is where no picture can be, and for screen readers."""
        others = self.weights if self.is_cross else self.weights * (1 - torch.eye(len(self.tokens)))
        values, places = others.flatten().topk(min(_PAIRS, others.numel()))
        rows = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            layer, head, query, key = (int(i) for i in torch.unravel_index(torch.tensor(place), others.shape))
            if value > 0:
                pair = (f"{query}: {self.tokens[query]}", f"{key}: {self.key_tokens[key]}")
                rows.append((str(self.layers[layer]), str(self.heads[head]), *pair, round(value, 3)))
        if not rows:
            return "<p>The one token attends to itself.</p>"
        found = table(rows, ("layer", "head", "token", "attends to", "weight"))
        return (
            "<details><summary>The strongest pairs of two tokens, as a table (the picture needs a trusted notebook "
            f"and a browser)</summary>{found}</details>"
        )


def attention(
    lm: LM,
    text: Text,
    *,
    decoder_text: Text | None = None,
    part: str | None = None,
    view: View = "head",
    layers: Chosen = None,
    heads: Chosen = None,
) -> AttentionPicture:
    """Show what each head attends to in a text.

    Args:
        lm: The model.
        text: A text, as `generate` reads a prompt, or token ids.
        decoder_text: Of an encoder-decoder: what its decoder writes, such as what `lm.generate(text)` returned, or the
            token ids that it reads, from the start token.
        part: Of an encoder-decoder: "encoder", "decoder" or "cross", from what is written to what was read; without,
            it is "cross" where there is a `decoder_text`, else "encoder".
        view: "head": one layer at a time, its heads laid over one another. "model": all heads side by side.
        layers: Which, from 0; None: all.
        heads: As `layers`.

    Raises:
        UserError: No such view, part, layer or head, a text that the model cannot take, weights that are not
            finite, or a picture that would freeze the browser.
    """
    if view not in get_args(View):
        raise UserError(f"There is no view {view!r}.", hint=nearest(str(view), get_args(View)))
    part = checked_part(lm.model, part, has_decoder_text=decoder_text is not None)
    keys = token_ids(lm, text)
    queries = keys
    if decoder_text is not None and part != "encoder":
        queries = decoder_ids(lm, decoder_text)
        keys = queries if part == "decoder" else keys
    config = lm.config
    kept_layers = chosen(
        layers, config.num_layers if part in (None, "encoder") else config.num_decoder_layers, "layer"
    )
    kept_heads = chosen(heads, config.num_heads, "head")
    cost = _Cost(len(kept_layers), len(kept_heads), view, causal=part == "decoder" or "score" in lm.model.can)
    cost.refuse_what_would_freeze(len(queries), len(keys))
    given: dict[str, Any] = (
        {} if part is None else {"part": part, "decoder_text": queries if part != "encoder" else None}
    )
    weights = attention_weights(
        lm, keys if part != "decoder" else text, layers=kept_layers, heads=kept_heads, **given
    )
    if not weights.isfinite().all():
        raise UserError(
            "The attention is not finite: the model's weights are broken.", hint="Load an earlier checkpoint."
        )
    left, right = ([_shown(lm.tokenizer, token) for token in ids] for ids in (queries, keys))
    return AttentionPicture(
        weights,
        left,
        key_tokens=right if part == "cross" else None,
        layers=kept_layers,
        heads=kept_heads,
        view=view,
        part=part,
    )


@dataclasses.dataclass(frozen=True)
class _Cost:
    """What a picture costs the browser.

    Attributes:
        num_layers: Layers that are shown.
        num_heads: Heads of each.
        view: The view.
        causal: Whether no token attends to a later one.
    """

    num_layers: int
    num_heads: int
    view: View
    causal: bool

    def of(self, queries: int, keys: int) -> tuple[int, int]:
        """Return the lines drawn at once and, at most, the bytes of the numbers."""
        seen = queries * (queries + 1) // 2 if self.causal else queries * keys
        unseen = queries * keys - seen
        if self.view == "head":
            return self.num_heads * queries * keys, self.num_layers * self.num_heads * (6 * seen + 2 * unseen)
        return self.num_layers * self.num_heads * seen, self.num_layers * self.num_heads * 6 * seen

    def refuse_what_would_freeze(self, queries: int, keys: int) -> None:
        """Raise `UserError` where the browser would not answer for seconds."""

        def fits(tokens: int) -> bool:
            lines, num_bytes = self.of(min(queries, tokens), min(keys, tokens))
            return lines <= MOST_LINES and num_bytes <= MOST_BYTES

        longest = max(queries, keys)
        if fits(longest):
            return
        lines, num_bytes = self.of(queries, keys)
        most = next((tokens for tokens in range(longest, 0, -1) if fits(tokens)), 0)
        shorter = f"shorten the text to {most} tokens, or " if most else ""
        raise UserError(
            f"A picture of {self.num_layers} x {self.num_heads} heads and {longest} tokens would hold "
            f"{size(num_bytes)} and draw {lines:,} lines at once, and freeze the browser; {size(MOST_BYTES)} and "
            f"{MOST_LINES:,} lines are the most.",
            where=f"view={self.view!r}",
            hint=f"To see it, {shorter}choose fewer: layers=[0], heads=[0, 1].",
        )


def _shown(tokenizer: Any, token: int) -> str:
    """Return a token's text with its white space to be seen, cut to what fits."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if not text:
        text = str(tokenizer.convert_ids_to_tokens(token))
    text = text.replace("\n", "↵").replace("\t", "⇥")
    if text.isspace():
        text = "␣" * len(text)
    return text if len(text) <= _LONGEST_TOKEN else f"{text[: _LONGEST_TOKEN - 1]}…"


def _listed(numbers: Sequence[int]) -> str:
    """Return "0 to 11" for a whole range, else "0, 3, 7"."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _json_list(parts: Iterable[str]) -> str:
    return f"[{','.join(parts)}]"


@functools.cache
def _packaged(distribution: str, file: str) -> str:
    """Return a script that an installed package brings along.

    Raises:
        UserError: The package is not installed, or its release no longer has the file.
    """
    try:
        path = importlib.metadata.distribution(distribution).locate_file(file)
        text = Path(str(path)).read_text(encoding="utf-8")
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise UserError(
            f"The attention picture needs {file} of the package {distribution}, which is not there.",
            hint=f"Install it: pip install {distribution}",
        ) from error
    return text.replace("</script", "<\\/script")


_DECIMALS = [f"{n / 1000:g}" for n in range(1001)]
