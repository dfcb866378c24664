"""Reward models: a network that scores an answer, learnt from pairs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.finetuning.alignment.dpo import preference_loss
from nbllm.finetuning.alignment.pairwise import SIDES
from nbllm.finetuning.alignment.preference_rows import prepare_whole_pairs
from nbllm.finetuning.method import METHODS, Method, Prepared
from nbllm.inference.reward import Scoring
from nbllm.models.network import build
from nbllm.models.quantized import quantized_layers
from nbllm.nn.compiled import state_by_name
from nbllm.objectives.base import OBJECTIVES, Batch, Objective, Rows
from nbllm.objectives.measures import measure
from nbllm.runs.settings import Setting

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.training.config import TrainConfig


@OBJECTIVES.register("reward")
class RewardModelling(Objective[Scoring]):
    """The negative log-likelihood of preferences, whose log-odds are the difference of two scores.

    Where the data states by how much an answer is better, the difference is to be larger by that, times margin_scale.
    Differences leave open where the scores lie; `center` times the squared sum of both keeps them around 0.

    Source: Stiennon et al. 2020, arXiv:2009.01325, section 3.4; Touvron et al. 2023, arXiv:2307.09288, eq. 2 (margin);
        Eisenstein et al. 2023, arXiv:2312.09244, section 2 (centred).
    """

    needs = "reward"
    only_examples = True
    metrics: ClassVar[tuple[str, ...]] = (
        "reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy",
    )  # fmt: skip
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            name="margin_scale", low=0.0, high=100.0, default=1.0, help="What the data's margins count; 0: nothing."
        ),
        Setting(name="center", low=0.0, high=100.0, default=0.0, help="How strongly scores are kept around 0."),
    )  # fmt: skip

    def batch(self, windows: Rows, rng: np.random.Generator) -> Batch:
        """Return "inputs", (pair, 2, position), "lengths", (pair, 2), "margin" and "weight", the chosen ones first.

        Args:
            windows: Columns of `preference_rows.prepare_whole_pairs`.
            rng: Nothing is drawn.
        """
        lengths = np.stack([windows[f"{side}_length"] for side in SIDES], 1)
        tokens = np.stack([windows[side][:, : lengths.max()] for side in SIDES], 1)
        made = {
            "inputs": tokens,
            "lengths": lengths,
            "margin": windows["margin"],
            "weight": windows["weight"],
        }
        return {name: torch.from_numpy(array) for name, array in made.items()}

    def loss(self, network: Scoring, batch: Batch) -> tuple[Tensor, float]:
        """Return the loss summed over the pairs times their weights, and the sum of these."""
        weight, shape = batch["weight"], batch["lengths"].shape
        scores = network.scores(*(batch[name].flatten(0, 1) for name in ("inputs", "lengths"))).unflatten(
            0, shape
        )
        margin = scores[:, 0] - scores[:, 1]
        losses = preference_loss(margin - self.values["margin_scale"] * batch["margin"])
        losses = losses + self.values["center"] * scores.sum(1).square()
        found = scores.detach()
        figures = (found[:, 0], found[:, 1], margin.detach(), (found[:, 0] > found[:, 1]).float())
        for name, values in zip(self.metrics, figures, strict=True):
            measure(name, (values * weight).sum(), weight.sum())
        return (losses * weight).sum(), float(weight.sum())


@METHODS.register("reward")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(Method):
    """A reward model learnt from pairs: the model with a score head in place of the one that predicts tokens.

    The run trains a model of its own, which `nb.load(run)` opens; the one that is given stays as it is.
    """

    objective: ClassVar[str] = "reward"
    learning_rates: ClassVar[tuple[float, float]] = (1e-4, 1e-5)

    def trained(self, lm: LM) -> LM:
        """Return a copy of the model with a score head; a model that has one is trained further."""
        return lm if lm.config.score_head else with_score_head(lm)

    def prepare(self, data: Any, lm: LM, config: TrainConfig) -> Prepared:
        """Make rows of pairs; errors as `prepare_whole_pairs`."""
        return prepare_whole_pairs(data, lm, config)


def with_score_head(lm: LM, *, seed: int = 0) -> LM:
    """Return a model of the same body with a score head in place of that which predicts tokens.

    Adapters that are on are merged into the copy's weights.

    Args:
        lm: The model, which stays as it is.
        seed: Of the new head.

    Raises:
        UserError: Models of this kind or family have no score head.
    """
    from nbllm.lm import LM
    from nbllm.models.families import FAMILIES

    if lm.config.network not in ("decoder", "encoder"):
        raise UserError(
            f"This model cannot become a reward model: it is {lm.model.kind}.",
            hint="Causal decoders and encoders can.",
        )
    config = lm.config.replace(score_head=True, mask_head=False, pooler=lm.config.network == "encoder")
    FAMILIES[config.family].check(config)
    source = lm.copy()
    if quantized_layers(source.model):
        source.dequantize()
    if source.adapters:
        source.adapter_stack.merge(*source.adapters)
        for adapter in reversed(source.adapters):
            adapter.detach()
    model = build(config, seed=seed).to(dtype=lm.model.dtype, device=lm.model.device)
    with torch.no_grad():
        state, own = state_by_name(source.model), dict(model.named_parameters())
        for name in own.keys() & state.keys():
            own[name].copy_(state[name])
    made = LM(model, lm.tokenizer)
    made.origin = lm.origin
    return made
