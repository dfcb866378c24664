"""How parameters, activations and batches of one run are laid over its processes."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any, Protocol

from nbllm.core.config import PlainConfig, check_choice, check_plain_types, check_positive
from nbllm.core.errors import UserError

if TYPE_CHECKING:
    from nbllm.distributed.explain import PlanReport
    from nbllm.distributed.step_time import Hardware
    from nbllm.models.config import ModelConfig

SCHEDULES = ("1f1b", "gpipe", "interleaved", "zero_bubble")
PRECISIONS = ("float32", "bfloat16", "float16", "float8")
OFFLOADS = ("none", "cpu", "disk")
COMPILES = ("none", "blocks", "whole")
CHECKPOINTINGS = ("none", "full", "selective")

# The modules of this package that say what a plan asks of a model and of a run: each has a function
# `check(plan, model, run)`, which raises `UserError` with the reason where the plan cannot work.
TECHNIQUES = (
    "data_parallel",
    "zero",
    "tensor_parallel",
    "pipeline_parallel",
    "context_parallel",
    "offload",
)


class RunFacts(Protocol):
    """What a plan is checked against besides the model's shape; `training.TrainConfig` has it."""

    @property
    def objective(self) -> str:
        """The name of the objective."""

    @property
    def optimizer(self) -> str:
        """The name of the optimizer."""

    @property
    def batch_size(self) -> int:
        """Sequences in one forward pass of a data rank."""

    @property
    def sequence_length(self) -> int:
        """Tokens in a sequence."""

    @property
    def accumulation(self) -> int:
        """Forward passes of a data rank in one step."""

    @property
    def packing(self) -> str:
        """How documents share a sequence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(PlainConfig):
    """How a model is trained by several processes ("ranks"), and what is saved where memory is short.

    The number of ranks is data x tensor x pipeline x context.

    Args:
        data: Replicas, each of which reads its own sequences; None: as many as the other axes leave ranks for.
        zero: What the data ranks share out instead of each holding all of it: 0 nothing, 1 the optimizer's state,
            2 gradients as well, 3 parameters as well (ZeRO).
        shard: Over how many of the data ranks that is shared out, replicated over groups of so many (hybrid); None:
            over all.
        tensor: Ranks that share the matrices of each layer (tensor parallel); the loss is computed on parts of the
            vocabulary then.
        sequence: Whether these also share the positions between the matrices (sequence parallel).
        pipeline: Ranks that hold consecutive blocks each (pipeline parallel).
        schedule: In which order a pipeline computes: "1f1b", "gpipe", "interleaved" or "zero_bubble".
        context: Ranks that share the positions of each sequence (context parallel).
        precision: What the model computes in; None: as the run says. Weights are trained in float32 in any case.
        activation_checkpointing: What is computed again in the backward pass instead of being kept: "none", "full"
            (every block), "selective" (all but the matmuls), or a number k (every k-th block).
        offload: Where parameters, gradients and the optimizer's state are kept between uses: "none" (on the device);
            "cpu": in the CPU's memory, where they are updated; of one GPU, which fetches block by block, or of several
            that share them out (`zero=2` or 3), each rank's parts; "disk": of one process on the CPU, in files that
            the system maps into memory.
        compile: What `torch.compile` compiles: "none", "blocks" (each by itself) or "whole".

    Source: Rajbhandari et al. 2019, arXiv:1910.02054 (ZeRO); Shoeybi et al. 2019, arXiv:1909.08053 (tensor parallel).
    """

    data: int | None = None
    zero: int = 0
    shard: int | None = None
    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    schedule: str = "1f1b"
    context: int = 1
    precision: str | None = None
    activation_checkpointing: str | int = "none"
    offload: str = "none"
    compile: str = "none"

    def __post_init__(self) -> None:
        """Check what does not depend on the number of ranks."""
        for name, value in _checked_types(self).items():
            object.__setattr__(self, name, value)
        check_positive(self, "tensor", "pipeline", "context")
        for name in ("data", "shard"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if self.zero not in range(4):
            raise UserError(f"zero is {self.zero!r}; it must be 0, 1, 2 or 3.", where="Plan")
        check_choice(self, "schedule", SCHEDULES)
        check_choice(self, "offload", OFFLOADS)
        check_choice(self, "compile", COMPILES)
        if self.precision is not None:
            check_choice(self, "precision", PRECISIONS)
        if isinstance(self.activation_checkpointing, int):
            check_positive(self, "activation_checkpointing")
        else:
            check_choice(self, "activation_checkpointing", CHECKPOINTINGS)
        if self.sequence and self.tensor == 1:
            raise UserError(
                "sequence=True shares positions between the ranks of a tensor-parallel group; there is none.",
                where="Plan",
                hint="Set tensor=2 or more, or share out sequences with context=2.",
            )
        if self.precision == "float8" and self.tensor > 1:
            raise UserError(
                "Layers that are split over tensor ranks are not multiplied in float8.",
                where="Plan",
                hint='Use precision="bfloat16" with tensor, or zero=3 with float8.',
            )
        if self.shard is not None and self.zero < 2:
            raise UserError(
                f"shard={self.shard} says over how many ranks parameters are sharded; with zero={self.zero} none are.",
                where="Plan",
                hint="Set zero=2 or zero=3, or leave shard out.",
            )

    @property
    def ranks(self) -> int | None:
        """How many processes it needs; None: `data` is left open."""
        return None if self.data is None else self.data * self.model_ranks

    @property
    def model_ranks(self) -> int:
        """How many processes hold one replica of the model together."""
        return self.tensor * self.pipeline * self.context

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are sharded over data ranks by `fully_shard`."""
        return self.zero >= 2 and self.num_shards > 1

    @property
    def num_shards(self) -> int:
        """Over how many of the data ranks something is shared out; 1: each holds all."""
        assert self.data is not None, "sized first"
        return (self.shard or self.data) if self.zero else 1

    def sized(self, ranks: int) -> Plan:
        """Return the plan with `data` filled in.

        Args:
            ranks: How many processes there are.

        Raises:
            UserError: It needs another number of processes.
        """
        needed = self.model_ranks
        parts = " x ".join(
            f"{name}={getattr(self, name)}"
            for name in ("tensor", "pipeline", "context")
            if getattr(self, name) > 1
        )
        if ranks % needed:
            raise UserError(
                f"{parts} needs a multiple of {needed} processes; there {_are(ranks)}.",
                where="Plan",
                hint=f"Launch {-(-ranks // needed) * needed} processes, or set smaller numbers.",
            )
        data = ranks // needed if self.data is None else self.data
        if data * needed != ranks:
            whole = f"data={data} x {parts}" if parts else f"data={data}"
            raise UserError(
                f"{whole} needs {_processes(data * needed)}; there {_are(ranks)}.",
                where="Plan",
                hint=f"Launch {data * needed} processes, or leave data out: it would be {ranks // needed}.",
            )
        if self.shard is not None and data % self.shard:
            divisors = [each for each in range(1, data + 1) if data % each == 0]
            raise UserError(
                f"{data} data ranks cannot be divided into groups of shard={self.shard}.",
                where="Plan",
                hint=f"Set shard to one of {', '.join(map(str, divisors))}.",
            )
        return self.replace(data=data)

    def check(self, model: ModelConfig, run: RunFacts) -> None:
        """Check that a model can be trained so in a run, before anything of it is started; the plan must be sized.

        Args:
            model: The model's shape.
            run: The run's configuration.

        Raises:
            UserError: It cannot; the reason and what to change are named.
        """
        for name in TECHNIQUES:
            importlib.import_module(f"nbllm.distributed.{name}").check(self, model, run)

    def explain(
        self,
        lm: Any,
        devices: int | None = None,
        *,
        hardware: Hardware | None = None,
        **work: Any,
    ) -> PlanReport:
        """Return what the plan means for a model, before anything is started and without the hardware.

        Args:
            lm: An `LM`, a `ModelConfig`, or a preset's name.
            devices: How many there are, a rank on each; None: as many as the plan needs at least.
            hardware: What is assumed of the machines, for the estimate of a step's time.
            work: Of `distributed.memory.Workload`: batch_size (1), sequence_length (the model's context, 1,024 at
                most), accumulation (1), optimizer ("adamw"), precision (the plan's, or "bfloat16") and device ("cuda").

        Raises:
            UserError: The plan cannot work; the reason and what to change are named.
        """
        from nbllm.distributed.explain import explain

        return explain(self, lm, devices=devices, hardware=hardware, **work)


def _checked_types(plan: Plan) -> dict[str, Any]:
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    choice = values["activation_checkpointing"]
    if isinstance(choice, bool) or not isinstance(choice, (str, int)):
        raise UserError(
            f"activation_checkpointing must be a name or a whole number, not {choice!r}.", where="Plan"
        )
    return check_plain_types(Plan, values)


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"


def _are(number: int) -> str:
    return "is one" if number == 1 else f"are {number}"
