"""The one loop. It reads commands and writes events in the run directory, and knows nothing of who watches."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist

from nbllm.core.allocator import kept_memory, returned_memory
from nbllm.core.base_weights import BaseWeights
from nbllm.core.errors import RefusedError, RunError
from nbllm.core.seeding import derive
from nbllm.data.loader import make_source
from nbllm.data.sample_store import SampleStore
from nbllm.distributed.apply import lay_out
from nbllm.distributed.plan import Plan
from nbllm.distributed.ranks import Ranks, from_rank_zero
from nbllm.distributed.scratch import Scratch
from nbllm.inference import SamplingConfig, generate
from nbllm.lm import LM
from nbllm.models.loading import read_config
from nbllm.models.network import build_without_weights
from nbllm.nn.compiled import parameters_by_name
from nbllm.nn.compute.decisions import ComputeChoices, use_choices
from nbllm.objectives import OBJECTIVES
from nbllm.opening import assemble
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.timeline import Timeline
from nbllm.training.checkpoint_writer import CheckpointWriter, Contents
from nbllm.training.config import TrainConfig
from nbllm.training.diagnosis import NOTHING, first_bad_module, weights_are_finite
from nbllm.training.freezing import ParameterNames
from nbllm.training.metrics import reported_metrics, sources_of
from nbllm.training.objective import make_objective
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers import OPTIMIZERS
from nbllm.training.precision import DTYPES, choose_device
from nbllm.training.rank_report import RankReport
from nbllm.training.run_record import check_record
from nbllm.training.session import Session
from nbllm.training.sharded_state import held_tensors, write_description
from nbllm.training.sharded_writer import ShardedWriter
from nbllm.training.steering_decisions import DoWork, EndRun
from nbllm.training.step import Stepper
from nbllm.training.step_profiler import StepProfiler
from nbllm.training.train_state import (
    only_adapters_are_trained,
    read_model,
    read_objective,
    write_model,
    write_objective,
)
from nbllm.training.validation import NO_VALIDATION, Validation, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nbllm.models.network import GenerativeNetwork

_LARGE = 10_000_000  # parameters of a model whose memory is given back at once
MAX_SAMPLE = 4096  # tokens: while a sample is made nothing else is heard
TIMED = 100  # steps from one timeline of a pipeline to the next


class Trainer(Session):
    """Trains the model of one run directory, from its newest good checkpoint to its last step.

    Args:
        path: The run directory.
        where: "thread" or "process", for the record.
        publish_to: A model that is given the new weights at each checkpoint and at the end, or `None`.
        ranks: The processes that train the run together, each with its own batches; one when not given.
        writer: Writes the checkpoints; when not given, the one process does, or all of torch.distributed together.
        owner: The process that holds the run for its ranks; see `Session`.
        num_threads: To compute with, where the run executes otherwise than its record says; None: as recorded.
        plan: How the model lies over the ranks; as the record says when not given.

    Raises:
        RunError: Its record makes no sense, another trainer has this run, or no checkpoint of it is good.
    """

    def __init__(
        self,
        path: Path,
        *,
        where: str,
        publish_to: LM | None = None,
        ranks: Ranks | None = None,
        writer: CheckpointWriter | None = None,
        owner: Mapping[str, Any] | None = None,
        num_threads: int | None = None,
        plan: Plan | None = None,
    ) -> None:
        super().__init__(path, where=where, ranks=ranks, writer=writer, owner=owner)
        check_record(path, self.record)
        if num_threads is not None:
            self.record["choices"] = {**self.record["choices"], "num_threads": num_threads}
        self.publish_to = publish_to
        self._profiler: StepProfiler | None = None
        self._shared: BaseWeights | None = None  # the run's base, while the model's own weights are its
        self.config = TrainConfig.from_dict(self.record["config"])
        self.plan = Plan.from_dict(self.record.get("plan") or {}) if plan is None else plan
        self.settings = self.config.settings
        self.keep_checkpoints = self.config.keep_checkpoints
        self.metrics = reported_metrics(
            OBJECTIVES[self.config.objective],
            evaluates=self.record["data"]["validation"] is not None,
            sources=sources_of(self.record["data"]),
        )

    def run(self) -> None:
        """Train to the end, or until stopped. Whatever happens is an event.

        Raises:
            Exception: What made the run fail, after it was recorded.
        """
        self.claim()
        try:
            memory = kept_memory() if self.plan.offload == "none" else returned_memory()
            with memory, use_choices(ComputeChoices.from_record(self.record["choices"])):
                try:
                    self._start()
                    self.finish(self._loop())
                finally:  # before the block ends, which gives back what is free
                    self._forget_model()
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            self.release()

    # -- what may be asked of it ---------------------------------------------------------------------------------

    def frozen_after(self, action: str, patterns: Sequence[str]) -> tuple[str, ...]:
        """Return the patterns of what is frozen after an action; see `training.freezing`."""
        return self.parameter_names.after(action, self.frozen, patterns)

    def set_frozen(self, patterns: tuple[str, ...]) -> None:
        """Freeze just the parameters that the patterns freeze."""
        self._freeze(patterns)
        self.change(frozen=patterns)

    def _freeze(self, patterns: tuple[str, ...]) -> None:
        frozen = self.parameter_names.frozen(patterns)
        self.optimizer.freeze(frozen)
        if not only_adapters_are_trained(self.lm, frozen):
            self._shared = None  # from now on a checkpoint holds all weights

    def validate(self) -> None:
        """Measure the loss on held-out text.

        Raises:
            RefusedError: The run was given none.
        """
        if self.validation is None:
            raise RefusedError(NO_VALIDATION)
        self.stepper.configure(self.values)
        measured: dict[str, Any] = self.validation.measure(self.layout, self._device)
        self.emit("evaluation", **measured)

    def sample(self, prompt: str = "", max_new_tokens: int | None = None, **asked: Any) -> None:
        """Write a sample that continues `prompt`, beside the reference's where the objective has one.

        Its randomness depends on seed and step alone.
        """
        if "generate" not in self.lm.model.can:
            if "actor" in asked:
                raise RefusedError(f"this model cannot generate: it is {self.lm.model.kind}")
            return  # it was due, but nobody asked for it
        seed = derive(self.config.seed, "sample", self.step, prompt) % 2**31
        sampling = SamplingConfig(
            max_new_tokens=min(max_new_tokens or self.config.sample_tokens, MAX_SAMPLE),
            temperature=0.8,
            top_p=0.95,
            seed=seed,
            overflow="slide",
        )

        def write(network: GenerativeNetwork) -> str:
            text = generate(
                network,
                self.lm.tokenizer,
                prompt,
                config=sampling,
                end_ids=self.lm.end_tokens,
                decoder_tokens=self.lm.decoder_tokens,
                should_stop=lambda: self.exit_reason is not None,
            )
            return str(text)

        with self.layout.whole_network() as network:
            if network is None:  # rank 0 writes it
                return
            text, beside = write(cast("GenerativeNetwork", network)), dict[str, Any]()
            reference = self.stepper.objective.compared_with()
            if reference is not None and network is self.layout.network:  # a copy is not the reference's
                with reference:
                    beside["reference"] = write(cast("GenerativeNetwork", network))
        self.emit("sample", prompt=prompt, text=text, seed=seed, **beside, **{"actor": "loop", **asked})

    def profile(self, steps: int = 3) -> None:
        """Watch what the ranks do in the next steps; all of them begin here at the same one."""
        if self._profiler is not None:
            raise RefusedError("the run is being profiled already")
        on_gpu = torch.device(self._device).type == "cuda"
        self._profiler = StepProfiler(
            self.path, step=self.step, steps=steps, rank=self.ranks.rank, on_gpu=on_gpu
        )

    # -- checkpoints --------------------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        """Write model, optimizer and objective."""
        write_model(folder, self.lm, self.optimizer, self._shared)
        write_objective(folder, self.stepper.objective)

    def contents(self) -> Contents:
        """Return what a checkpoint holds: all of it from rank 0, or of each rank its parts."""
        if not self.writer.takes_parts:
            return Contents(self.write)
        return Contents(
            lambda folder: write_description(folder, self.lm, self._shared),
            held_tensors(self.lm, self.optimizer, self.stepper.objective, self._shared),
        )

    def read(self, folder: Path) -> None:
        """Put back model, optimizer and objective."""
        read_model(folder, self.lm, self.optimizer)
        self._shared = BaseWeights.referred_to_by(folder)
        self._freeze(self.frozen)
        read_objective(folder, self.stepper.objective, self.lm.model)

    def why_not_save(self) -> str | None:
        """Weights that are not finite are not worth a checkpoint."""
        if self._weights_are_finite():
            return None
        return "the weights are not finite; the last checkpoint is kept instead"

    def publish(self, *, wait: bool = False) -> None:
        """Give the new weights to the model that the person holds; while it is in use, skip that, or `wait`."""
        if self.publish_to is None or not self._weights_are_finite():
            return
        if not self.publish_to.lock.acquire(blocking=wait):
            return
        try:
            with torch.no_grad():
                for name, parameter in parameters_by_name(self.publish_to.model).items():
                    parameter.copy_(self.optimizer.masters[name])
            self.publish_to.origin = self.path.name
        finally:
            self.publish_to.lock.release()

    def _weights_are_finite(self) -> bool:
        """Return whether those of all ranks are."""
        bad = torch.tensor(float(not weights_are_finite(self.optimizer.masters)))
        self.ranks.sum([bad])
        return not bad

    # -- the loop -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        choices = self.record["choices"]
        torch.set_num_threads(choices["num_threads"])
        self._device = choose_device(choices["device"])
        timeline = self.timeline() if self.ranks.rank == 0 else None
        newest, problems = self._newest_checkpoint(timeline)
        if newest is None:
            raise RunError(
                "No checkpoint of this run is good.", where=self.path, hint="; ".join(problems) or None
            )
        # `begin` reads the weights: read here too, they would need the memory twice.
        model = build_without_weights(read_config(newest.path)[1])
        scratch = Scratch(self.path) if self.plan.offload == "disk" else None
        with contextlib.nullcontext() if scratch is None else scratch.allocating():
            model = model.to_empty(device="cpu" if self._streams_weights else self._device)
        self.lm = assemble(model, newest.path)
        self._check_receiver()
        self.lm.model.attention_backend = choices["attention"]
        self.lm.model.train()
        plan = self.plan.replace(precision=choices["precision"])
        dtype = DTYPES[choices["precision"]]
        self.layout = lay_out(
            self.lm.model, plan, self.ranks, dtype=dtype, device=self._device, scratch=scratch
        )
        if self.ranks.size > 1 and dist.is_initialized():
            self.writer = ShardedWriter(dist.new_group(backend="gloo"))
        self.optimizer = Optimizer(self.layout, OPTIMIZERS[self.config.optimizer])
        self.parameter_names = ParameterNames(self.optimizer.names, self.lm.config)
        begins = self.lm.decoder_tokens
        objective = make_objective(
            self.config,
            self.lm.tokenizer,
            start=None if begins is None else begins.decoder_start_token_id,
        )
        objective.sources = sources_of(self.record["data"])
        store = open_store(self.record["data"]["train"])
        source = make_source(
            store.with_sources(objective.sources) if isinstance(store, SampleStore) else store,
            length=objective.window_length(self.config.sequence_length),
            overlap=objective.overlap,
            seed=self.config.seed,
        )
        self.stepper: Stepper = (objective.stepper or Stepper)(
            objective, self.optimizer, source, self.config, self._device
        )
        self.stepper.folder, self.stepper.lm = self.path, self.lm
        self.report = self.stepper.report = RankReport(self.ranks, self.journal, self._device)
        self.validation = Validation.of(self.record["data"]["validation"], objective, self.config)
        self.begin(timeline, newest, problems, choices)
        if self.layout.note is not None:
            self.emit("warning", text=self.layout.note)

    @property
    def _streams_weights(self) -> bool:
        """Whether the model lies in the CPU's memory, and is brought to the device block by block."""
        return self.plan.offload == "cpu" and self.ranks.size == 1

    def _check_receiver(self) -> None:
        """Refuse to give weights to a model whose adapter is no longer as the run's."""
        if self.publish_to is None:
            return
        own, theirs = (parameters_by_name(lm.model).keys() for lm in (self.lm, self.publish_to))
        if own != theirs:
            raise RunError(
                "The model's adapter was switched off, merged, detached or exchanged since this run began.",
                where=self.path,
                hint="Switch it on, or go on with the run's own weights: nb.attach(run).resume().",
            )

    def _newest_checkpoint(self, timeline: Timeline | None) -> tuple[CheckpointInfo | None, list[str]]:
        """Return the newest good checkpoint on the run's branch, as rank 0 finds it, and what is wrong with newer ones.

        Args:
            timeline: The run so far; `None` on the other ranks.
        """

        def find() -> list[Any]:
            assert timeline is not None
            info, problems = checkpoints.newest_good(self.path, timeline.on_branch)
            return [None if info is None else info.name, problems]

        name, problems = from_rank_zero(self.ranks, find)
        return None if name is None else checkpoints.named(self.path, name), problems

    def _forget_model(self) -> None:
        """Drop the weights and the optimizer's state: whoever holds this trainer does not need them."""
        is_large = "lm" in self.__dict__ and self.lm.num_parameters >= _LARGE
        self.publish_to = None
        if self._profiler is not None:
            self._profiler.close()
            self._profiler = None
        for name in ("lm", "layout", "optimizer", "stepper", "validation"):
            self.__dict__.pop(name, None)
        if is_large:
            gc.collect()  # cycles hold the weights until the next collection, which may come late

    def _loop(self) -> EndRun:
        while (end := self.boundary()) is None:
            self._step()
            self.finish_step()  # before the next line: a rule may go back to where all was finite
            if self.state.bad_steps >= self.config.max_bad_steps:
                return EndRun(state="failed", reason=self._diagnose())
        return end

    def _step(self) -> None:
        before = self.state
        self.report.begin_step()
        result = self.stepper.step(before)
        self.state = result.state
        self.report.end_step(self.step, self.state.seconds - before.seconds)
        if self._profiler is not None and self._profiler.end_step():
            self._profiler = None
        self.emit(
            "step",
            loss=result.loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens=self.state.tokens,
            tokens_per_second=result.tokens_per_second,
            memory=self.journal.memory,
            seconds=self.state.seconds,
            **dict[str, Any](result.measured),
        )
        if (
            self.step % TIMED == 2 and (timings := self.layout.timings()) is not None
        ):  # the first step warms up
            self.emit("pipeline", **timings.to_dict())
        if not result.good and not self.state.bad_steps:
            scale = f"{self.state.loss_scale:g}"
            text = f"step skipped: a gradient is beyond float16's range; the loss is multiplied by {scale} from now on"
            self.emit("warning", text=text)
        elif not result.good:
            text = f"step skipped: loss {result.loss}, gradient norm {result.grad_norm}"
            self.emit("warning", text=f"{text} ({self.state.bad_steps} in a row)")

    def due(self) -> Iterator[DoWork]:
        """Yield the measurements, samples and checkpoints that are due after this step."""

        def every(interval: int) -> bool:
            return interval > 0 and self.step % interval == 0

        last = self.step >= self.values["steps"]
        if self.state.bad_steps:
            return
        if self.validation is not None and (last or every(self.config.validation_interval)):
            yield DoWork(work="evaluate")
        if self.config.sample_interval and (last or every(self.config.sample_interval)):
            for prompt in self.config.sample_prompts:
                yield DoWork(work="sample", args={"prompt": prompt})
        if every(self.config.checkpoint_interval) and not last:
            yield DoWork(work="save")

    def _diagnose(self) -> str:
        """Return why the run ends, as rank 0 finds it on the whole network."""
        weights = self.optimizer.masters if self._streams_weights else None
        with self.layout.whole_network() as network:

            def find() -> str:
                assert network is not None
                for position in self.stepper.positions_before(self.state):
                    batch = self.stepper.batch(position)
                    culprit = first_bad_module(network, self.stepper.objective, batch, weights)
                    if culprit != NOTHING:
                        return culprit
                return NOTHING

            culprit = from_rank_zero(self.ranks, find)
        return f"{self.state.bad_steps} steps in a row were not finite; the first to go bad is {culprit}"
