"""A plan applied to a network: every technique in the order in which they wrap one another."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from nbllm.distributed.activation_checkpointing import checkpoint_activations
from nbllm.distributed.compilation import compile_network
from nbllm.distributed.context_parallel import apply_context_parallel, share_loss
from nbllm.distributed.cpu_offload import CPUOffload
from nbllm.distributed.data_parallel import DataParallel
from nbllm.distributed.layout import Layout, OneProcess, copy_without_weights
from nbllm.distributed.mesh import Mesh
from nbllm.distributed.offload import DiskOffload
from nbllm.distributed.pipeline_parallel import Division, PipelineParallel
from nbllm.distributed.plan import Plan
from nbllm.distributed.ranks import Ranks
from nbllm.distributed.scratch import Scratch
from nbllm.distributed.tensor_parallel import apply_tensor_parallel
from nbllm.distributed.zero import FullySharded, OptimizerSharded, blocks_of
from nbllm.models.network import Network
from nbllm.nn.float8 import multiply_in_float8


def lay_out(
    network: Network,
    plan: Plan,
    ranks: Ranks,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    scratch: Scratch | None = None,
) -> Layout:
    """Lay a network over ranks, in place; all of them call this at once, with equal weights.

    Args:
        network: The complete network, on this rank's device; in the CPU's memory, where one rank offloads it to that.
        plan: How.
        ranks: The processes of torch.distributed's default group, or a single one.
        dtype: What it computes in; its parameters are trained in float32.
        device: Where it computes; None: where it is.
        scratch: Where what is offloaded to disk lies, as the network should; None: the folder of temporary files.

    Raises:
        UserError: The plan needs another number of ranks, or the network cannot be laid out so.
    """
    plan = plan.sized(ranks.size)
    if ranks.size == 1:
        if plan.offload == "disk":
            scratch = Scratch(Path(tempfile.gettempdir())) if scratch is None else scratch
            alone: OneProcess = DiskOffload(network, plan, ranks, dtype=dtype, scratch=scratch)
        elif plan.offload == "cpu":
            where = torch.device(network.device if device is None else device)
            alone = CPUOffload(network, plan, ranks, dtype=dtype, device=where)
        else:
            alone = OneProcess(network, plan, ranks, dtype=dtype)
        alone.note = _compute_blocks(network, plan)
        return alone
    mesh = Mesh(plan, network.device.type)
    undivided = copy_without_weights(network) if plan.model_ranks > 1 else None
    pipeline = Division(network, plan, mesh) if plan.pipeline > 1 else None
    if (tensor := mesh.submesh("tensor")) is not None:
        apply_tensor_parallel(network, tensor, sequence=plan.sequence)
    if (context := mesh.submesh("context")) is not None:
        apply_context_parallel(network, context, tensor=plan.tensor)
    note = _compute_blocks(network, plan)
    layout: Layout
    kind = FullySharded if plan.is_sharded else OptimizerSharded if plan.num_shards > 1 else DataParallel
    layout = kind(network, plan, ranks, mesh=mesh, dtype=dtype)
    if context is not None:
        share_loss(layout.loss_module, context)
    if pipeline is not None:
        layout = PipelineParallel(pipeline, layout, mesh=mesh)
    layout.undivided, layout.note = undivided, note
    return layout


def _compute_blocks(network: Network, plan: Plan) -> str | None:
    """Say how blocks are computed; return what a person should know of it before the first step."""
    if plan.precision == "float8":
        for block in blocks_of(network):
            multiply_in_float8(block)
    checkpoint_activations(network, plan.activation_checkpointing)
    return compile_network(network, plan.compile)
