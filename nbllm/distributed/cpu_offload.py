"""Weights, gradients and the optimizer's state in the CPU's memory: training on one GPU whose own is too small."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nbllm.distributed.layout import OneProcess
from nbllm.distributed.loss_module import Batch, Loss
from nbllm.distributed.master_weights import MasterWeights
from nbllm.distributed.offload import pieces_of
from nbllm.distributed.plan import Plan
from nbllm.distributed.ranks import Ranks
from nbllm.models.network import Network
from nbllm.nn.joined import empty_parameters


class Copies:
    """Copies between the CPU's memory and a device's, beside what is computed on it.

    Where the device is the CPU, they are made at once.

    Args:
        device: The device.

    Attributes:
        pins: Whether what is copied in the CPU's memory should be pinned. torch rounds pinned memory up to powers of 2.
    """

    def __init__(self, device: torch.device) -> None:
        self.pins = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.pins else None

    @torch.no_grad()
    def start(self, copies: Iterable[tuple[Tensor, Tensor]]) -> torch.cuda.Event | None:
        """Begin to copy, when all is computed that has been asked for so far.

        Args:
            copies: Where to, and what. Both must be kept until the copy is complete.

        Returns:
            What says that; None: it is.
        """
        if self._stream is None:
            for target, source in copies:
                target.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for target, source in copies:
                target.copy_(source, non_blocking=True)
        event: torch.cuda.Event = self._stream.record_event()
        return event

    def finish(self) -> None:
        """Wait until all copies are complete: what they are made of may be changed then."""
        if self._stream is not None:
            self._stream.synchronize()


class BlockWeights:
    """The weights of one block: kept in the CPU's memory, and copied to the device while they are needed.

    The block's parameters are on the device throughout, since autograd holds them. Between uses their storages are
    empty, and they read as NaN, so that a use without `fetch` does not go unnoticed.

    Args:
        block: The block; its parameters move to the device.
        dtype: What it computes in.
        device: Where.
        copies: What copies them.

    Attributes:
        host: Each parameter as the block computes with it, in the CPU's memory.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype, device: torch.device, copies: Copies) -> None:
        self._copies = copies
        parameters = dict(block.named_parameters())
        made = {
            name: each.detach() for name, each in empty_parameters(block, dtype=dtype, device=device).items()
        }
        hosts: dict[int, Tensor] = {}
        self._storages: list[tuple[Tensor, Tensor]] = []  # on the device, on the CPU: each as one flat tensor
        self.host: dict[str, Tensor] = {}
        for name, each in made.items():
            storage = each.untyped_storage()
            if storage._cdata not in hosts:  # that of joined layers is one
                flat = torch.empty(0, dtype=dtype, device=device).set_(storage)
                hosts[storage._cdata] = torch.empty(len(flat), dtype=dtype, pin_memory=copies.pins)
                self._storages.append((flat, hosts[storage._cdata]))
            host = hosts[storage._cdata].as_strided(each.shape, each.stride(), each.storage_offset())
            self.host[name] = host.copy_(parameters[name].detach())
        missing = torch.full((), torch.nan, dtype=dtype, device=device)
        self._parameters = [
            (parameters[name], each, missing.expand(each.shape)) for name, each in made.items()
        ]
        self._sizes = [flat.untyped_storage().nbytes() for flat, _ in self._storages]
        self.release()

    def fetch(self) -> torch.cuda.Event | None:
        """Let the parameters have memory on the device, and begin to copy the weights into it; see `Copies.start`."""
        for (flat, _), num_bytes in zip(self._storages, self._sizes, strict=True):
            flat.untyped_storage().resize_(num_bytes)
        for parameter, whole, _ in self._parameters:
            parameter.data = whole
        # The flat tensors are not the parameters: autograd does not count this as a change of these.
        return self._copies.start(self._storages)

    def release(self) -> None:
        """Give the memory on the device back."""
        for parameter, _, missing in self._parameters:
            parameter.data = missing
        for flat, _ in self._storages:
            flat.untyped_storage().resize_(0)


class BlockStream:
    """Holds the weights of at most two blocks on the device: of the one that computes, and of its neighbour.

    Memory is taken and given back in the order of the stream that computes; the copies are made on another. A copy
    therefore waits for the computation that was asked for before, whose memory it may have got, and goes on beside
    the next.

    Args:
        blocks: The weights, in the order in which they are computed.
    """

    def __init__(self, blocks: Sequence[BlockWeights]) -> None:
        self._blocks = blocks
        self._held: dict[int, torch.cuda.Event | None] = {}  # with what says that the copy is complete

    def forward_to(self, number: int) -> None:
        """Let a block of a forward pass compute; the next one is fetched meanwhile."""
        # After the last block comes its own backward pass, and then that of the one before it.
        self._need(number, number + 1 if number + 1 < len(self._blocks) else number - 1)

    def back_to(self, number: int) -> None:
        """Let a block of a backward pass compute; the one before it is fetched meanwhile."""
        self._need(number, number - 1 if number > 0 else number + 1)

    def release(self) -> None:
        """Hold nothing."""
        for number in list(self._held):
            self._release(number)

    def _need(self, number: int, neighbour: int) -> None:
        for other in [each for each in self._held if each not in (number, neighbour)]:
            self._release(other)
        self._fetch(number)
        _wait(self._held[number])
        if 0 <= neighbour < len(self._blocks):
            self._fetch(neighbour)

    def _fetch(self, number: int) -> None:
        if number not in self._held:
            self._held[number] = self._blocks[number].fetch()

    def _release(self, number: int) -> None:
        _wait(self._held.pop(number))  # its memory may be used anew as soon as the copy is complete
        self._blocks[number].release()


class OffloadedWeights(MasterWeights):
    """Masters in the CPU's memory; the network's parameters are on the device, those of the blocks while they compute.

    Args:
        network: What is trained, in the CPU's memory.
        dtype: What it computes in.
        device: Where.
        copies: What copies the blocks' weights.

    Attributes:
        stream: What brings the blocks to the device.
        blocks: The blocks' modules, in the order of the stream.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, device: torch.device, copies: Copies) -> None:
        self.are_copies = True
        self.working = dict(network.named_parameters())
        self.parameters: dict[str, nn.Parameter] = {}
        pieces, modules = pieces_of(network)
        self.blocks = list(modules.values())
        self._hosts: dict[str, Tensor] = {}  # of the blocks; masters are rounded into them
        streamed: list[BlockWeights] = []
        for number, names in enumerate(pieces):
            masters = {name: self.working[name].detach().to(torch.float32) for name in names}
            if number in modules:
                weights = BlockWeights(modules[number], dtype, device, copies)
                hosts = dict(zip(names, weights.host.values(), strict=True))
                masters = hosts if dtype == torch.float32 else masters
                self._hosts |= {} if dtype == torch.float32 else hosts
                streamed.append(weights)
            else:
                for name in names:
                    self.working[name].data = masters[name].to(device, dtype, copy=True)
            self.parameters |= {name: nn.Parameter(master) for name, master in masters.items()}
        for module in network.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        self._outside = [
            name for number, names in enumerate(pieces) if number not in modules for name in names
        ]
        self.stream = BlockStream(streamed)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into what the network computes with."""
        self.stream.release()
        for name, host in self._hosts.items():
            host.copy_(self.parameters[name])
        for name in self._outside:
            self.working[name].copy_(self.parameters[name])


class ReturnedGradients:
    """Gradients on their way to the CPU's memory, where they are added to those of the masters.

    Args:
        masters: Whose.
        copies: What copies them.
    """

    def __init__(self, masters: Mapping[str, nn.Parameter], copies: Copies) -> None:
        self._masters = masters
        self._copies = copies
        # Of the block that computes and of the one before: name, gradient, its copy, what says that this is complete.
        self._sent: list[list[tuple[str, Tensor, Tensor, torch.cuda.Event | None]]] = [[], []]

    def send(self, name: str, gradient: Tensor) -> None:
        """Begin to copy a gradient; it must not be changed any more."""
        host = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=self._copies.pins)
        event = self._copies.start([(host, gradient)])
        self._sent[-1].append((name, gradient, host, event))

    def next_block(self) -> None:
        """Add up what was sent before the block that has just been computed; its own may still be on their way."""
        self._sent.append([])
        self._add(self._sent.pop(0))

    def finish(self) -> None:
        """Add up all that was sent."""
        for sent in self._sent:
            self._add(sent)
            sent.clear()

    @torch.no_grad()
    def _add(self, sent: Sequence[tuple[str, Tensor, Tensor, torch.cuda.Event | None]]) -> None:
        for name, _, host, event in sent:
            if event is not None:
                event.synchronize()
            master = self._masters[name]
            if master.grad is None:
                master.grad = host.to(torch.float32, copy=True)  # pinned memory is for what is on its way
            else:
                master.grad += host


class CPUOffload(OneProcess):
    """One process with a GPU that holds the weights of two blocks at a time; all else is in the CPU's memory.

    Nothing else differs from `OneProcess`: the operations are the same. While a block is computed, the next one's
    weights are copied to the device and the gradients of the one before it to the CPU, where they are added up and the
    optimizer updates the weights. What is outside of blocks, embedding and head, stays on the device. Where "the
    device" is the CPU, the same copies are made in its memory.

    Args:
        network: The network, in the CPU's memory; it moves.
        plan: The plan, sized.
        ranks: This one.
        dtype: What the network computes in.
        device: Where.

    Source: Ren et al. 2021, arXiv:2101.06840 (ZeRO-Offload), section 4; weights are streamed as in Rajbhandari et al.
        2021, arXiv:2104.07857 (ZeRO-Infinity), section 5.
    """

    def __init__(
        self, network: nn.Module, plan: Plan, ranks: Ranks, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(network, plan, ranks, dtype=dtype)
        # The two ways between CPU and GPU are apart: neither waits for the other.
        self._to_device, to_host = Copies(device), Copies(device)
        self._weights = OffloadedWeights(network, dtype, device, self._to_device)
        self._returned = ReturnedGradients(self._weights.parameters, to_host)

    def make_masters(self) -> MasterWeights:
        """Return the weights in the CPU's memory."""
        return self._weights

    def forward_backward(self, batches: Sequence[Batch], loss: Loss, divisor: float) -> tuple[float, float]:
        """Take the batches one after the other, block by block."""
        with self._streaming(), contextlib.ExitStack() as hooks:
            for name, parameter in self._weights.working.items():
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(self._sender(name))
                    hooks.callback(handle.remove)
            try:
                return super().forward_backward(batches, loss, divisor)
            finally:
                self._returned.finish()  # of a pass that was broken off, too

    def _end_pass(self) -> None:
        self._returned.finish()

    def _sender(self, name: str) -> Callable[[Tensor], None]:
        def send(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            self._returned.send(name, gradient)

        return send

    def evaluate(self, batch: Batch, loss: Loss) -> tuple[float, float]:
        """Return the summed loss of a batch, and how much counts in it."""
        with self._streaming():
            return super().evaluate(batch, loss)

    @contextlib.contextmanager
    def own_network(self, *, in_float32: bool) -> Iterator[Network | None]:
        """Give the network: on the device, block by block; in float32, all of it in the CPU's memory."""
        with contextlib.nullcontext() if in_float32 else self._streaming():
            with super().own_network(in_float32=in_float32) as network:
                yield network

    @contextlib.contextmanager
    def _streaming(self) -> Iterator[None]:
        """Within the context, a block's weights come to the device when it is called, and when its gradients are made.

        The hooks keep kernels away that compute blocks without calling them.
        """
        with contextlib.ExitStack() as hooks:
            for number, block in enumerate(self._weights.blocks):
                before = block.register_forward_pre_hook(self._fetcher(number))
                after = block.register_forward_hook(self._watcher(number))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            hooks.callback(self._to_device.finish)
            yield

    def _fetcher(self, number: int) -> Callable[..., None]:
        def fetch(*_: Any) -> None:
            self._weights.stream.forward_to(number)

        return fetch

    def _watcher(self, number: int) -> Callable[..., None]:
        """Return what waits for the gradient of a block's output: the block's backward pass begins then."""

        def begin(_: Tensor) -> None:
            self._weights.stream.back_to(number)  # first: it goes on while gradients are added up
            self._returned.next_block()

        def watch(module: nn.Module, given: Any, out: Any) -> None:
            for each in tree_leaves(out):
                if isinstance(each, Tensor) and each.requires_grad:
                    each.register_hook(begin)

        return watch


def _wait(event: torch.cuda.Event | None) -> None:
    """Let what is computed from now on wait for an event."""
    if event is not None:
        event.wait()
