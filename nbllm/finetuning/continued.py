"""Domain adaptation: pre-training goes on with the text of a domain; general text is replayed against forgetting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.data.packing import pack
from nbllm.data.sample_store import NO_EXAMPLE, SampleStore, write_samples
from nbllm.data.token_store import TokenStore
from nbllm.finetuning.method import METHODS, Method
from nbllm.objectives.base import IGNORED

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.training.config import TrainConfig

DOMAIN, GENERAL = "domain", "general"  # the data sets of a run, whose losses it reports


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """Text in rows of one length.

    Attributes:
        store: The rows.
        num_tokens: Tokens of each data set, by its name.
    """

    store: SampleStore
    num_tokens: dict[str, int]

    def __repr__(self) -> str:
        parts = ", ".join(f"{count:,} tokens of {name} text" for name, count in self.num_tokens.items())
        shares = self.store.shares
        total = sum(shares)
        drawn = (
            "; drawn " + " to ".join(f"{share / total:.0%}" for share in shares) if shares and total else ""
        )
        return f"{parts} in {self.store.num_rows:,} rows{drawn}"


@METHODS.register("continued")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Continued(Method):
    """Continued pre-training on the text of a domain, with replay of general text.

    `data` is text, as for `nb.train`. Held-out text is of the domain, or {"domain": text, "general": text}: then the
    run reports both losses, and `nb.finetuning.forgetting` compares them with those before.

    Args:
        replay: General text, such as a sample of what the model was trained on; None: nothing is replayed.
        replay_share: Which share of the tokens it has.

    Source: Gururangan et al. 2020, arXiv:2004.10964; Ibrahim et al. 2024, arXiv:2403.08763, section 6 (replay).
    """

    objective: ClassVar[str] = "sft"

    replay: Any = None
    replay_share: float = 0.1

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.replay_share < 1:
            raise UserError(f"replay_share must be between 0 and 1, not {self.replay_share!r}.")

    def prepare(self, data: Any, lm: LM, config: TrainConfig) -> PreparedText:
        """Make rows of the domain's text and the text that is replayed.

        Raises:
            DataError: There is no text, or too little for a row.
        """
        return self._prepared(
            {DOMAIN: data} | ({} if self.replay is None else {GENERAL: self.replay}), lm, config
        )

    def prepare_validation(self, data: Any, lm: LM, config: TrainConfig) -> PreparedText:
        """Make rows of held-out text; errors as `prepare`."""
        return self._prepared(data if isinstance(data, Mapping) else {DOMAIN: data}, lm, config, shares=False)

    def _prepared(
        self, texts: Mapping[str, Any], lm: LM, config: TrainConfig, *, shares: bool = True
    ) -> PreparedText:
        lm.causal_network_for("score")
        if unknown := texts.keys() - {DOMAIN, GENERAL}:
            raise DataError(f"Held-out text is {DOMAIN!r} or {GENERAL!r}, not {min(unknown)!r}.")
        stores = {
            name: text if isinstance(text, TokenStore) else pack(text, lm.tokenizer)
            for name, text in texts.items()
        }
        parts = {name: _rows(store, config.sequence_length) for name, store in stores.items()}
        columns = {
            name: np.concatenate([rows[name] for rows in parts.values()])
            for name in ("inputs", "targets", "examples")
        }
        counts = [len(rows["inputs"]) for rows in parts.values()]
        columns["sources"] = np.repeat(np.arange(len(parts), dtype=np.int32), counts)
        mixed = shares and len(parts) > 1
        store = write_samples(
            columns,
            row_length=config.sequence_length,
            num_examples=sum(len(each) for each in stores.values()),
            num_bytes=sum(each.num_bytes for each in stores.values()),
            vocab_size=len(lm.tokenizer),
            sources=tuple(parts),
            shares=(1 - self.replay_share, self.replay_share) if mixed else (),
        )
        return PreparedText(store, {name: each.num_tokens for name, each in stores.items()})


def _rows(store: TokenStore, length: int) -> dict[str, NDArray[np.int32]]:
    """Return the tokens of a store in rows, each predicted once from those before it in its row."""
    tokens = store.read().astype(np.int32)
    if len(tokens) < 2:
        raise DataError("There is too little text.", where=store.path)
    count = -(-(len(tokens) - 1) // length)
    shape = (count, length)
    rows = {
        name: np.full(count * length, value, np.int32)
        for name, value in (("inputs", 0), ("targets", IGNORED), ("examples", NO_EXAMPLE))
    }
    last = len(tokens) - 1
    rows["inputs"][:last], rows["targets"][:last], rows["examples"][:last] = tokens[:-1], tokens[1:], 0
    return {name: each.reshape(shape) for name, each in rows.items()}
