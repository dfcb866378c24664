"""Embedding and head in an adapter's file: there where the vocabulary has grown, or where they have updates."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from nbllm.core.errors import WeightsError
from nbllm.models.families.known import FAMILIES
from nbllm.models.network import Network
from nbllm.models.peft.peft_format import module_rules, names_of
from nbllm.models.vocabulary import resize_vocabulary

_PARTS = ("embedding", "head")


def vocabulary_tensors(model: Network) -> dict[str, Tensor]:
    """Return the rows of embedding and head, by the names that peft gives them."""
    weights = dict(_weights(model))
    return {
        f"{module}.weight": weights[names_of(rule)[0]].detach().cpu()
        for module, rule in module_rules(model).items()
        if names_of(rule)[0] in weights
    }


@torch.no_grad()
def read_vocabulary(model: Network, tensors: dict[str, Tensor], where: Path) -> None:
    """Take embedding and head out of an adapter's tensors, and give a model with fewer rows those of the file.

    Args:
        model: The model.
        tensors: By name, without the prefix.
        where: The file.

    Raises:
        WeightsError: They are not the model's, and no longer ones either.
    """
    found: dict[str, Tensor] = {}
    for module, rule in module_rules(model).items():
        name = names_of(rule)[0]
        for key in (f"{module}.weight", f"{module}.base_layer.weight"):
            if name in _PARTS and key in tensors:
                found[name] = tensors.pop(key)
    if not found:
        return
    rows = {len(tensor) for tensor in found.values()}
    own = dict(_weights(model))
    if "head" not in own and "head" in found:
        tied = found.pop("head")
        if "embedding" in found and not torch.equal(tied, found["embedding"]):
            raise WeightsError(
                "The file's head is another matrix than its embedding; the model's is the same.", where=where
            )
        found.setdefault("embedding", tied)
    if len(rows) == 1 and rows.pop() > model.config.vocab_size and found.keys() == own.keys():
        resize_vocabulary(model, len(found["embedding"]))
        for name, weight in _weights(model):
            weight.copy_(found[name])
        return
    for name, tensor in found.items():
        if tensor.shape != own[name].shape or not torch.equal(tensor.to(own[name]), own[name]):
            raise WeightsError(
                f"The file holds another {name} than the model's, of shape {tuple(tensor.shape)}.",
                where=where,
                hint="Open the model that it was trained on.",
            )


def _weights(model: Network) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters with a row for each token, by module."""
    assert model.config.family in FAMILIES
    modules = [(name, getattr(model, name, None)) for name in _PARTS]
    return [
        (name, cast(nn.Parameter, module.weight))
        for name, module in modules
        if isinstance(module, (nn.Embedding, nn.Linear))
    ]
