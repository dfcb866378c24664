"""The step that replaces, removes or tags personal data, or drops the documents that hold it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, cast

import numpy as np

from nbllm.core.errors import UserError, nearest
from nbllm.core.terminal import say
from nbllm.data.arrow_text import Texts
from nbllm.data.pii import phones
from nbllm.data.pii.finding import Findings, Names, check_kinds, find_personal_data
from nbllm.data.pii.placeholders import KEY_BYTES, fingerprint, mask, own_key, placeholder
from nbllm.data.pipeline.step import STEPS, Editor, Edits, Rule, function_name

Action = Literal["replace", "remove", "tag", "drop"]
ACTIONS = ("replace", "remove", "tag", "drop")


@STEPS.register("privacy")
@dataclasses.dataclass(frozen=True)
class Privacy(Editor):
    """Finds personal data and does something about it; `nb.data.privacy` makes one.

    Attributes:
        kinds: What is looked for, in the order in which finds that overlap are decided.
        action: "replace", "remove", "tag" or "drop".
        regions: Countries that telephone numbers without a prefix may be from.
        names: Finds names in a text.
        key: Of the placeholders; only its fingerprint is described.
    """

    kinds: tuple[str, ...]
    action: Action
    regions: tuple[str, ...]
    names: Names | None = dataclasses.field(repr=False)
    key: bytes = dataclasses.field(repr=False)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """One for each kind; none where personal data is only tagged."""
        if self.action == "tag":
            return ()
        kind: Any = "document" if self.action == "drop" else "span"
        return tuple(Rule(f"privacy: {name}", kind=kind) for name in self.kinds)

    def describe(self) -> dict[str, Any]:
        """Return the settings: of the key its fingerprint, of the function of names where it is from."""
        finder: Any = self.names
        names = function_name(finder)
        if dataclasses.is_dataclass(finder):
            names = f"{names} {finder!r}"  # its model
        return {**super().describe(), "names": names, "key": fingerprint(self.key)}

    def find(self, texts: Texts) -> Findings:
        """Return what is found in a batch, each with its proof; nothing is changed."""
        return find_personal_data(texts, self.kinds, regions=self.regions, names=self.names)

    def edits(self, texts: Texts) -> Edits:
        """Return what is replaced or removed; the signals `privacy/email`, ... count what was found."""
        found = self.find(texts)
        counts = {
            f"privacy/{name}": np.bincount(
                found.document[found.kind == kind], minlength=texts.num_documents
            ).astype(np.int32)
            for kind, name in enumerate(self.kinds)
        }
        if self.action == "tag":
            return Edits.none(counts)
        replacement = None
        if self.action == "replace":
            pairs = zip(found.kind.tolist(), found.values, strict=True)
            replacement = [placeholder(self.kinds[kind], value, self.key) for kind, value in pairs]
        values = np.full(len(found.values), np.nan)
        shown = [mask(value) for value in found.values]
        return Edits(
            found.document,
            found.start,
            found.stop,
            found.kind,
            values,
            replacement,
            shown=shown,
            signals=counts,
        )


def privacy(
    kinds: Iterable[str] | None = None,
    *,
    action: str = "replace",
    regions: Iterable[str] = phones.REGIONS,
    names: Names | None = None,
    key: bytes | None = None,
) -> Privacy:
    """Make the step that finds personal data: e-mail addresses, telephone and card numbers, keys, and others.

    Whatever is found is proved: by check digits, the length that its country gives it, numbering plans, ranges, or
    entropy. In the place of each stands its kind and letters that are the same for the same person in all documents, on
    any number of workers: "[EMAIL-K3V9Q2]". Displays and the ledger show finds masked.

    Names need a function that finds them: Microsoft's Presidio (extra `names`), or a token classifier of transformers:

    >>> nb.data.privacy(names=nb.data.PresidioNames("en_core_web_sm"))
    >>> nb.data.privacy(names=nb.data.TaggedNames("folder/of/a/model"))

    Args:
        kinds: "secret", "credentials" (user and password of a URL), "email", "iban", "card", "national_id" (of 13
            countries), "ip" (public only), "phone", "name"; None: all, names where there is a function for them and
            telephone numbers where the extra `privacy` is installed.
        action: "replace" by placeholders, "remove", "tag" (columns `privacy/email`, ... count, and nothing is changed)
            or "drop" the documents.
        regions: Countries (codes of two letters) that telephone numbers without a prefix may be from.
        names: Given a text, returns the first character of each name and the one behind its last.
        key: 32 secret bytes that placeholders depend on; None: this user's own, which is made once and kept in nbllm's
            cache folder.

    Raises:
        UserError: There is no such kind, action or region, or what a kind needs is missing.
    """
    if action not in ACTIONS:
        raise UserError(f"There is no action {action!r}.", hint=nearest(str(action), ACTIONS))
    if names is not None and not callable(names):
        raise UserError(f"names must be a function, not {type(names).__name__}.")
    if key is not None and (not isinstance(key, bytes) or len(key) != KEY_BYTES):
        raise UserError(f"key must be {KEY_BYTES} bytes.", hint="secrets.token_bytes(32) makes one.")
    chosen = check_kinds(kinds, names=names is not None)
    if kinds is None and "phone" not in chosen:
        say(f"Telephone numbers are not looked for: {phones.INSTALL}.")
    codes = (regions,) if isinstance(regions, str) else tuple(regions)
    if "phone" in chosen:
        phones.check_regions(codes)
    return Privacy(chosen, cast("Action", action), codes, names, key or own_key())
