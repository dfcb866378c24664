"""What a recurrent network keeps of the tokens already read: as much for a long text as for a short one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.nn.wkv import LOWEST


class RecurrentState:
    """The state of RWKV's layers, for inference, without gradients. A `Cache`.

    Args:
        num_layers: Layers of the model.
        batch: Sequences held.
        hidden_size: Width of the residual stream.
        dtype: Of the inputs that are kept; sums are float32.
        device: Where it is held.

    Attributes:
        inputs: (layer, 2, batch, hidden), what time mixing and channel mixing read at the last token.
        sums: (layer, 3, batch, hidden), numerator and denominator of `nn.wkv.wkv`, and the exponent of their scale.
        length: How many tokens of each sequence were read, padding included.
        max_length: Beyond every text: the state has one size.
        can_crop: No token can be taken out of a sum again.
    """

    can_crop = False
    max_length = 1 << 40

    def __init__(
        self,
        num_layers: int,
        batch: int,
        hidden_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.inputs: Float[Tensor, "layer 2 batch hidden"] = torch.empty(
            num_layers, 2, batch, hidden_size, dtype=dtype, device=device
        )
        self.sums: Float[Tensor, "layer 3 batch hidden"] = torch.empty(
            num_layers, 3, batch, hidden_size, device=device
        )
        self.reset()

    def advance(self, count: int) -> None:
        """Count `count` more tokens as read, once every layer has read them."""
        self.length += count

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens: all of them or none."""
        assert length in (0, self.length), "no token can be taken out of a sum"
        if length == 0:
            self.reset()

    def gather(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the sequences `rows`, in that order; one may be there several times."""
        rows = rows.to(self.inputs.device)
        self.inputs, self.sums = self.inputs.index_select(2, rows), self.sums.index_select(2, rows)

    def reset(self) -> None:
        """Forget all tokens."""
        self.length = 0
        self.inputs.zero_()
        self.sums.zero_()
        self.sums[:, 2] = LOWEST

    def fits(self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether, once reset, it can hold `batch_size` sequences; they may be of any length."""
        inputs = self.inputs
        return inputs.shape[2] == batch_size and inputs.dtype == dtype and inputs.device == device

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, in bytes."""
        return self.inputs.nbytes + self.sums.nbytes
