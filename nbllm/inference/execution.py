"""How a generation is computed: which model runner, and which drafter."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from nbllm.inference.drafters.base import MakeDrafter
from nbllm.inference.drafters.prompt_lookup import PromptLookup
from nbllm.inference.runners.base import MakeRunner
from nbllm.inference.runners.called import CalledRunner
from nbllm.inference.runners.compiled import CompiledRunner, load_kernel
from nbllm.inference.runners.encoder_decoder import EncoderDecoderRunner
from nbllm.models.encoder_decoder import EncoderDecoder

if TYPE_CHECKING:
    from nbllm.models.network import GenerativeNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """What computes a generation. It changes the speed and not the text.

    Logits of several tokens read together equal those of one at a time up to rounding (in the compiled kernel, to the
    bit), so a drafter changes a token only where rounding decides between two.

    Args:
        runner: Makes the model runner; `None`: the fastest that computes the model.
        drafter: Makes what proposes draft tokens for a sequence that runs alone; `None`: nothing does. "auto": prompt
            lookup with the compiled kernel, where several tokens cost little more than one and have the same bits.
    """

    runner: MakeRunner | None = None
    drafter: MakeDrafter | Literal["auto"] | None = "auto"

    def prepare(self, model: GenerativeNetwork) -> None:
        """Load what the model runner needs; it may take long, and then says so."""
        if self.runner is None:
            load_kernel(model)

    def runner_for(self, model: GenerativeNetwork) -> MakeRunner:
        """Return what makes the model runner for a model as it is now."""
        if self.runner is not None:
            return self.runner
        if isinstance(model, EncoderDecoder):
            return EncoderDecoderRunner
        return CompiledRunner if CompiledRunner.serves(model) else CalledRunner

    def drafter_for(self, make_runner: MakeRunner) -> MakeDrafter | None:
        """Return what makes the drafter of a sequence that this runner computes."""
        if self.drafter == "auto":
            return PromptLookup if make_runner is CompiledRunner else None
        return self.drafter
