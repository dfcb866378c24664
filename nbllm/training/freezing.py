"""Which parameters a list of patterns freezes.

| pattern | freezes |
|---|---|
| `embedding.weight` | that parameter |
| `blocks.0`, `blocks.0.*` | all of the first layer; `*` stands for anything |
| `layers[0]`, `layers[:4]`, `layers[-2:]` | layers, counted as in Python: the first, the first four, the last two |
| `layers[:4].attention` | the attention of the first four |
| `encoder.layers[:2]`, `decoder.layers[-1]` | layers of an encoder-decoder's stacks |
| `model.layers.0.self_attn.q_proj.weight` | a parameter by the name that transformers gives it |
| `!layers[-2:]` | all but the last two: "!" takes away from the patterns before it, or else from everything |
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from nbllm.core.errors import RefusedError, UserError, listed
from nbllm.models.config import ModelConfig
from nbllm.models.families import FAMILIES
from nbllm.models.families.base import HEAD
from nbllm.runs.patterns import NOT, after

_IN_BRACKETS = re.compile(
    r"(?P<before>|.*\.)(?P<layers>blocks|block|layers|layer|h)\[(?P<which>[-\d:\s]+)\](?P<rest>.*)"
)
_LAYER = re.compile(r"((?:encoder\.|decoder\.)?)blocks\.(\d+)\.")


class ParameterNames:
    """The names by which patterns can name a model's parameters: ours, and those of its family in transformers.

    Args:
        names: Ours.
        config: The model's shape.
    """

    def __init__(self, names: Iterable[str], config: ModelConfig) -> None:
        self.names = tuple(names)
        self._num_layers: dict[str, int] = {}  # of each stack, by what stands before "blocks"
        for match in filter(None, map(_LAYER.match, self.names)):
            self._num_layers[match[1]] = max(self._num_layers.get(match[1], 0), int(match[2]) + 1)
        self._ours: list[tuple[str, str]] = [(name, name) for name in self.names]  # (a name, ours)
        if config.family in FAMILIES:
            family = FAMILIES[config.family]
            for rule in family.rules(config):
                for target in rule.targets:
                    self._ours.append((rule.source, target))
                    self._ours.append((rule.source.removeprefix(family.base_prefix), target))
        has_head = any(name.startswith("head.") for name in self.names)
        if config.tie_embeddings and not has_head:  # the embedding is the head
            self._ours += [(head, "embedding.weight") for head in ("head.weight", HEAD)]

    def frozen(self, patterns: Iterable[str]) -> frozenset[str]:
        """Return our names of the parameters that the patterns freeze.

        Raises:
            UserError: A pattern selects a layer that the model does not have.
        """
        found: set[str] = set()
        for pattern in patterns:
            if pattern.startswith(NOT):
                found -= self.named(pattern)
            else:
                found |= self.named(pattern)
        return frozenset(found)

    def named(self, pattern: str) -> set[str]:
        """Return our names of the parameters that one pattern names, with "!" or without.

        Raises:
            UserError: It selects a layer that the model does not have.
        """
        found: set[str] = set()
        for each in self._in_full(pattern.removeprefix(NOT).strip()):
            matches = re.compile(f"(?:{fnmatch.translate(each)})|(?:{fnmatch.translate(each + '.*')})").match
            found.update(ours for name, ours in self._ours if matches(name))
        return found

    def after(self, action: str, frozen: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
        """Return the frozen patterns after an action, `freeze` or `unfreeze`.

        Raises:
            UserError: A pattern names nothing, or nothing that is frozen; or all would be frozen.
        """
        changed = after(action, frozen, patterns)
        self.check([pattern for pattern in patterns if action == "freeze"])
        now = self.frozen(frozen)
        for pattern in patterns:
            if action == "unfreeze" and not now & self.named(pattern):
                held = listed(frozen) if frozen else "nothing is"
                raise RefusedError(f"Nothing that {pattern!r} names is frozen: {held}.")
        self._check_trained(changed)
        return changed

    def check(self, patterns: Sequence[str]) -> None:
        """Check that each pattern names something.

        Raises:
            UserError: One does not; some names that exist are shown.
        """
        for pattern in patterns:
            if not self.named(pattern):
                shown = listed(self.names[:4], quote=False)
                raise UserError(
                    f"The pattern {pattern!r} matches no parameter.",
                    hint=f"Parameters are: {shown}, ...; layers[-2:] are the last two layers.",
                )

    def check_from_start(self, patterns: Sequence[str]) -> None:
        """Check the patterns that a run begins with.

        Raises:
            UserError: One names nothing, or nothing would be left to train.
        """
        self.check(patterns)
        self._check_trained(patterns)

    def _check_trained(self, patterns: Sequence[str]) -> None:
        if self.frozen(patterns) == frozenset(self.names):
            raise UserError("Everything is frozen: nothing would be left to train.", hint="Freeze less.")

    def _in_full(self, pattern: str) -> list[str]:
        """Return a pattern with brackets once for each layer that it selects."""
        match = _IN_BRACKETS.fullmatch(pattern)
        if match is None:
            return [pattern]
        before, layers, rest = match["before"], match["layers"], match["rest"]
        # Without a prefix: our name, and transformers' for a model without its head.
        spelled = {layers, "blocks"} if before in self._num_layers or not before else {layers}
        return [
            f"{before}{each}.{number}{rest}"
            for number in self._selected(match["which"], pattern, self._count(before, pattern))
            for each in sorted(spelled)
        ]

    def _count(self, before: str, pattern: str) -> int:
        """Return the layers of the stack that a pattern means."""
        counts = self._num_layers
        if len(counts) < 2:
            return max(counts.values(), default=0)
        for stack, count in counts.items():
            if before.endswith(stack):
                return count
        shown = " or ".join(f"{stack}layers[...]" for stack in counts)
        raise UserError(f"The pattern {pattern!r} does not say of which stack.", hint=f"Write {shown}.")

    def _selected(self, which: str, pattern: str, count: int) -> Sequence[int]:
        """Return the numbers, of so many layers, that stand in brackets as in Python: "0", "-1", "2:5"."""
        numbers = range(count)
        try:
            parts = [int(part) if part.strip() else None for part in which.split(":")]
            return numbers[slice(*parts)] if len(parts) > 1 else [numbers[parts[0]]]  # type: ignore[index]
        except (IndexError, TypeError, ValueError):
            raise UserError(
                f"The pattern {pattern!r} selects no layer.",
                hint=f"The model has {count}: layers[0] to layers[{count - 1}].",
            ) from None
