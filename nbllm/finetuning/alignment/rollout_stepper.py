"""A step of the loop that samples answers with the policy as it is, scores them, and trains on them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.core.seeding import derive
from nbllm.finetuning.alignment.rollouts import Answers, write_rollout
from nbllm.finetuning.alignment.sampling_form import for_sampling
from nbllm.models.batching import batches
from nbllm.objectives.base import Batch
from nbllm.objectives.measures import recorded_measures
from nbllm.training.schedules import schedule_factor
from nbllm.training.step import Stepper, StepResult

if TYPE_CHECKING:
    from nbllm.distributed.layout import OneProcess
    from nbllm.finetuning.alignment.policy import PolicyObjective
    from nbllm.models.network import CausalNetwork
    from nbllm.training.optim import Optimizer
    from nbllm.training.train_state import TrainState

FEWEST_NORMALIZED = 64  # answers of the reference from which rewards are normalized
_SETTLED = ("inputs", "starts")  # what has no column for each token of the answer


@dataclasses.dataclass(frozen=True)
class Learned:
    """What the updates of one iteration came to.

    Attributes:
        loss: Mean over them.
        grad_norm: Mean of the norms before clipping.
        lr: The learning rate, the schedule applied.
        good: Whether all were finite; those that were not changed nothing.
    """

    loss: float
    grad_norm: float
    lr: float
    good: bool


class RolloutStepper(Stepper):
    """Takes iterations of a `PolicyObjective`.

    Answers depend on the seed, the step and the weights alone, and nothing of them is kept for the next step; so a run
    that resumes or is replayed samples the same again.
    """

    def step(self, state: TrainState) -> StepResult:
        """Take one iteration from `state`.

        Raises:
            UserError: Several processes train the run, or the reward is not known here.
            RunError: The reward function fails, or the answers cannot be kept.
        """
        began = time.perf_counter()
        if self.layout.ranks.size > 1:
            raise UserError("A policy is trained on its own answers by one process only.")
        self.configure(state.values)
        policy = self.policy
        if policy.values["normalize_reward"] and policy.reward_scale is None:
            policy.reward_scale = self._measured_scale()
        answers = self.sample(state.position, state.step)
        rewards = policy.score(answers)
        with recorded_measures() as measures:
            policy.report(answers, rewards)
            batch = answers.to_batch(self.device)
            scores = self._scaled(rewards, answers).to(self.device)
            columns, learned = self.learn(state, batch, scores)
        measured = measures.means()
        if self.folder is not None:
            write_rollout(self.folder, state.step, answers, {"reward": rewards, **columns})
        values = dict(state.values)
        if learned.good and policy.values["kl_target"] and "kl" in measured:
            values["kl_coefficient"] = policy.adapted(measured["kl"], len(answers))
            measured["kl_coefficient"] = values["kl_coefficient"]
        tokens = sum(map(len, answers.tokens))
        seconds = time.perf_counter() - began
        after = state.replace(
            step=state.step + 1,
            position=state.position + int(policy.values["prompts"]),
            tokens=state.tokens + tokens,
            seconds=state.seconds + seconds,
            bad_steps=0 if learned.good else state.bad_steps + 1,
            values=values,
        )
        return StepResult(
            state=after, loss=learned.loss, lr=learned.lr, grad_norm=learned.grad_norm,
            tokens_per_second=tokens / seconds, good=learned.good, measured=measured,
        )  # fmt: skip

    @property
    def policy(self) -> PolicyObjective:
        """The objective."""
        return cast("PolicyObjective", self.objective)

    @property
    def causal(self) -> CausalNetwork:
        """The network."""
        return cast("CausalNetwork", self.network)

    # -- answers and their scores -------------------------------------------------------------------------------

    def sample(self, position: int, *names: object) -> Answers:
        """Return answers to the prompts drawn at `position`, sampled with the randomness of these names."""
        rows = self.source.draw(position, int(self.policy.values["prompts"]))
        seed = derive(self.config.seed, "rollout", *names) % 2**31
        with for_sampling(self.causal, self.lm):
            return self.policy.sample(self.causal, cast("dict[str, NDArray[Any]]", rows), seed)

    def _scaled(self, rewards: Tensor, answers: Answers) -> Tensor:
        """Return the scores that are trained on: normalized where that is wanted, less the penalty of what was cut."""
        mean, deviation = self.policy.reward_scale or (0.0, 1.0)
        was_cut = ~torch.tensor(answers.ended)
        return (rewards - mean) / deviation - was_cut * float(self.policy.values["missing_end_penalty"])

    def _measured_scale(self) -> tuple[float, float]:
        """Return mean and standard deviation of the rewards of the reference's answers.

        Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.1: rewards have mean 0 and variance 1 on the samples of
        the reference, before training begins.
        """
        assert self.policy.reference is not None
        prompts = int(self.policy.values["prompts"])
        in_a_draw = prompts * int(self.policy.values["samples"])
        draws = -(-FEWEST_NORMALIZED // in_a_draw)
        with self.policy.reference.active():
            found = [
                self.policy.score(self.sample(prompts * draw, "reference", draw)) for draw in range(draws)
            ]
        rewards = torch.cat(found).double()
        return float(rewards.mean()), float(rewards.std()) or 1.0

    # -- training on them ----------------------------------------------------------------------------------------

    def learn(
        self, state: TrainState, batch: Batch, scores: Float[Tensor, " sequence"]
    ) -> tuple[dict[str, Tensor], Learned]:
        """Train on answers and their scores.

        Args:
            state: The step's state.
            batch: The answers, as `Answers.to_batch` makes them.
            scores: Of them.

        Returns:
            What is known of each answer, (sequence,) by name; and what the updates came to.
        """
        policy = self.policy
        assert policy.reference is not None
        policy.reference.note_trained()  # also of what was unfrozen while the divergence costs nothing
        known = {**batch, **self._observed(batch)}
        known |= policy.advantages(known, scores)
        mask = batch["mask"]
        columns = {"score": scores}
        if "reference" in known and "old" in known:
            columns["kl"] = ((known["old"] - known["reference"]) * mask).sum(1)
        return columns, self._update(state, known)

    def _observed(self, batch: Batch) -> dict[str, Tensor]:
        """Return what policy and reference say of the answers, (sequence, token) by name, before the first update."""
        policy, found = self.policy, dict[str, Tensor]()
        with torch.no_grad():
            if policy.needs_old:
                self._fill(found, batch, lambda part: policy.observe(self.causal, part))
            if policy.compares:
                assert policy.reference is not None
                with policy.reference.active():
                    self._fill(
                        found, batch, lambda part: {"reference": policy.seen(self.causal, part).log_probs}
                    )
        return found

    def _fill(self, found: dict[str, Tensor], batch: Batch, compute: Any) -> None:
        mask = batch["mask"]
        for rows in self._parts(batch, np.arange(len(mask))):
            for name, values in compute(select(batch, rows)).items():
                whole = found.setdefault(name, torch.zeros(mask.shape, device=mask.device))
                whole[rows, : values.shape[1]] = values

    def _update(self, state: TrainState, batch: Batch) -> Learned:
        values = self.policy.values
        lr = state.values["lr"] * schedule_factor(
            self.config.schedule, state.step, self._shape(state.values["steps"])
        )
        losses, norms = list[float](), list[float]()
        good = True
        for update in range(int(values["updates"])):
            rng = np.random.default_rng(derive(self.config.seed, "minibatches", state.step, update))
            order = rng.permutation(len(batch["mask"]))
            for rows in np.array_split(order, int(values["minibatches"])):
                loss, norm = self._one_update(state, batch, rows, lr)
                good = good and math.isfinite(loss) and math.isfinite(norm)
                losses.append(loss)
                norms.append(norm)
        return Learned(sum(losses) / len(losses), sum(norms) / len(norms), lr, good)

    def _one_update(
        self, state: TrainState, batch: Batch, rows: NDArray[np.intp], lr: float
    ) -> tuple[float, float]:
        """Take one optimizer step on some answers; return the mean loss and the norm of the gradient."""
        optimizers: list[Optimizer] = [self.optimizer, *self.policy.optimizers()]
        expected = max(1, int(batch["mask"][rows].sum()))
        total, count = 0.0, 0.0
        for part in self._parts(batch, rows):
            loss, counted, added = self._loss(self.network, select(batch, part))
            ((loss + added * counted if added is not None else loss) / expected).backward()
            cast("OneProcess", self.layout).take_gradients()
            total += float(loss.detach())
            count += counted
        mean = total / count if count else math.nan
        norms = []
        for optimizer in optimizers:
            if count:
                optimizer.scale_gradients(expected / count)
            norms.append(optimizer.clip(state.values["clip"]))
        if math.isfinite(mean) and all(map(math.isfinite, norms)):
            self.optimizer.configure(
                lr=lr, **{name: state.values[name] for name in self.config.optimizer_settings}
            )
            self.policy.configure_optimizers(lr / state.values["lr"] if state.values["lr"] else 0.0)
            for optimizer in optimizers:
                optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        return mean, norms[0]

    def _parts(self, batch: Batch, rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        """Yield rows that are read together: of similar length, as many tokens as a batch of the run has."""
        lengths = (batch["starts"] + batch["mask"].sum(1)).cpu().numpy()
        ordered = sorted(rows.tolist(), key=lambda row: (int(lengths[row]), row))
        most = self.config.batch_size * self.config.sequence_length
        for part in batches(ordered, lambda row: int(lengths[row]), most):
            yield np.array(part)


def select(batch: Batch, rows: NDArray[np.intp]) -> dict[str, Tensor]:
    """Return some rows of a batch, without columns that are padding in all of them."""
    part = {name: tensor[rows] for name, tensor in batch.items()}
    lengths = part["mask"].sum(1)
    longest, read = max(1, int(lengths.max())), max(1, int((part["starts"] + lengths).max()) - 1)
    return {
        name: tensor[:, :read] if name == "inputs" else tensor[:, :longest] if tensor.ndim == 2 else tensor
        for name, tensor in part.items()
    }
