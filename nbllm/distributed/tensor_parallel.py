"""Tensor parallelism: each rank computes with some of the heads, and some columns and rows of every matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from nbllm.distributed.plan import Plan, RunFacts
from nbllm.distributed.tensor_regions import Region
from nbllm.distributed.tensor_shares import Share, check_tensor_parallel, local_shape, shares
from nbllm.models.config import ModelConfig
from nbllm.models.encoder_decoder import EncoderDecoder
from nbllm.models.network import Network
from nbllm.nn.attention import Attention, AttentionContext
from nbllm.nn.cross_attention import CrossAttention
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.mixture_of_experts import MixtureOfExperts, Routing
from nbllm.nn.positions import Places
from nbllm.nn.positions.alibi import ALiBiPositions
from nbllm.nn.vocabulary_part import split_vocabulary


def check(plan: Plan, model: ModelConfig, run: RunFacts) -> None:
    """Check that a model can be split over a plan's tensor ranks."""
    check_tensor_parallel(model, plan.tensor)


def apply_tensor_parallel(network: Network, mesh: DeviceMesh, *, sequence: bool = False) -> None:
    """Leave this rank its share of a network that all ranks have alike, in place.

    Parameters become DTensors of the same names and whole shapes, split or replicated over the mesh. Modules compute
    with plain tensors of this rank's share, and pass activations on where attention and feed-forward parts, embedding
    and head begin and end: two all-reduces a block, forward and backward alike. The head's logits stay split by token
    (loss parallelism): `linear_cross_entropy` and `linear_log_probabilities` exchange sums over them alone.

    Args:
        network: The network; it may be on the device "meta".
        mesh: The ranks, in one dimension.
        sequence: Whether between the parts of blocks each rank holds a part of every sequence: all-reduces become
            reduce-scatters and all-gathers of the same traffic, and what the blocks keep of the residual stream and its
            normalizations takes a part of the memory. A sequence of any length is split.

    Raises:
        UserError: As `shares`.

    Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3; Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.
    """
    region = Region(mesh, sequence=sequence)
    by_name = shares(network, region.size, sequence=sequence)
    if region.size == 1:
        return
    _distribute(network, mesh, region, by_name)
    for module in network.modules():
        if isinstance(module, Attention) and sequence:
            module.register_forward_pre_hook(functools.partial(_note_length, region))
        if isinstance(module, Attention | CrossAttention | MixtureOfExperts) or (
            isinstance(module, FeedForward) and not _is_expert(network, module)
        ):
            module.register_forward_pre_hook(functools.partial(_enter, region))
            module.register_forward_hook(functools.partial(_leave, region))
        elif isinstance(module, ALiBiPositions):
            each = module.num_heads // region.size
            module.heads = slice(region.rank * each, (region.rank + 1) * each)
        if sequence and hasattr(module, "numbered_blocks"):
            stack: Any = module
            stack.numbered_blocks = functools.partial(_split_between, region, stack.numbered_blocks)
    if isinstance(network, EncoderDecoder):  # all layers of the decoder read it, each with its own heads
        network.encoder.register_forward_hook(lambda encoder, given, out: region.sum_gradient(out))
    if network.config.router_loss_weight:
        network.auxiliary_loss = functools.partial(  # type: ignore[method-assign]
            _auxiliary_loss, network.auxiliary_loss, region.size
        )


class OnShare(nn.Module):
    """Mixed into the class of a module whose parameters are shared: a parameter that is read is this rank's part.

    What is read is a plain tensor that is ready to be computed with, as its `Share` says, and passes its gradient on to
    the DTensor that is registered under its name.
    """

    tensor_region: Region
    tensor_shares: dict[str, Share]

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        # Sharded over data ranks too, it is not there to be computed with, and whoever reads it wants the parameter.
        if not isinstance(found, DTensor) or found.device_mesh.ndim > 1:
            return found
        region, share = self.tensor_region, self.tensor_shares[name]
        part = found.to_local()
        if share.partial:
            part = region.sum_gradient(part)
        if share.groups:
            part = part[share.rows(len(part), region.rank, region.size)]
        return region.add_once(part) if share.once else part


class SplitEmbedding(nn.Embedding):
    """A token embedding of which each rank holds the rows of some tokens."""

    tensor_region: Region

    def forward(self, input: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position hidden"]:
        """Return the embeddings of token ids, the same on all ranks."""
        weight, part = self.weight, split_vocabulary(self.weight)
        assert isinstance(weight, DTensor) and part is not None
        rows, inside = part.rows_of(input)
        found = F.embedding(rows, weight.to_local()).masked_fill(~inside[..., None], 0.0)
        return self.tensor_region.sum_parts(found)


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _distribute(network: Network, mesh: DeviceMesh, region: Region, by_name: dict[str, Share]) -> None:
    """Replace the parameters by DTensors, and the classes of the modules that read them."""
    made: dict[int, nn.Parameter] = {}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        of_module = {name: by_name[names[id(parameter)]] for name, parameter in own.items()}
        for name, parameter in own.items():
            if id(parameter) not in made:
                made[id(parameter)] = _distributed(parameter, of_module[name], mesh)
            module._parameters[name] = made[id(parameter)]
        module.tensor_region = region  # type: ignore[assignment]
        if isinstance(module, nn.Embedding) and of_module["weight"].vocabulary:
            module.__class__ = SplitEmbedding
        elif not any(share.vocabulary for share in of_module.values()):
            module.tensor_shares = of_module  # type: ignore[assignment]
            module.__class__ = _on_share(type(module))


def _distributed(parameter: nn.Parameter, share: Share, mesh: DeviceMesh) -> nn.Parameter:
    """Return a parameter of which this rank holds its share, in memory of its own."""
    rank, size = mesh.get_local_rank(), mesh.size()
    placement: Shard | Replicate = Replicate() if share.dim is None else Shard(share.dim)
    part = parameter.detach()
    if share.dim is not None:
        length = local_shape(parameter, share, rank, size)[share.dim]
        part = part.narrow(share.dim, -(-parameter.shape[share.dim] // size) * rank, length)
    whole = parameter.shape
    stride = torch.empty(whole, device="meta").stride()
    local = DTensor.from_local(
        part.clone(memory_format=torch.contiguous_format), mesh, (placement,), run_check=False, shape=whole,
        stride=stride,
    )  # fmt: skip
    return nn.Parameter(local, requires_grad=parameter.requires_grad)


def _on_share(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _classes:
        made = type(f"{kind.__name__}OnShare", (OnShare, kind), {"__module__": kind.__module__})
        _classes[kind] = cast("type[nn.Module]", made)
    return _classes[kind]


def _is_expert(network: Network, module: FeedForward) -> bool:
    """Return whether a feed-forward part is one of a mixture, which enters and leaves as a whole."""
    mixtures = (each for each in network.modules() if isinstance(each, MixtureOfExperts))
    return any(module is expert for mixture in mixtures for expert in mixture.experts)


def _enter(region: Region, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return region.enter(given[0]), *given[1:]


def _leave(region: Region, module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
    return region.leave(out)


def _note_length(region: Region, attention: nn.Module, given: tuple[Tensor, AttentionContext]) -> None:
    """Let the parts of a block know how many positions a sequence has.

    Attention is the first of them, also when activation checkpointing computes what is within a block again.
    """
    positions = given[1].positions
    assert positions is not None
    region.length = _count(positions)


def _split_between(
    region: Region, numbered_blocks: Callable[[], Iterable[tuple[int, Any]]]
) -> Iterator[tuple[int, Any]]:
    """Yield a stack's blocks; sequences are split before the first and joined after the last of them."""
    blocks = list(numbered_blocks())
    for place, (number, block) in enumerate(blocks):
        yield number, functools.partial(_call, region, block, place == 0, place == len(blocks) - 1)


def _call(
    region: Region, block: nn.Module, first: bool, last: bool, x: Tensor, context: AttentionContext
) -> Tensor:
    out: Tensor = block(region.split(x) if first else x, context)
    return region.join(out) if last else out


def _count(places: Places) -> int:
    """Return of how many tokens these are the positions."""
    if isinstance(places.ids, slice):
        return int(places.ids.stop - (places.ids.start or 0))
    return places.ids.shape[1]


def _auxiliary_loss(own: Any, size: int, routing: Routing) -> Tensor | None:
    """Return the loss of the routers; every rank has its whole gradient, and those of a router are summed."""
    loss: Tensor | None = own(routing)
    if loss is None:
        return None
    return loss.detach() + (loss - loss.detach()) / size
