"""Advantages, losses and gradients of GRPO and RLOO equal trl's on the same answers; so does PPO's clipped loss."""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import nbllm as nb
from nbllm.distributed.layout import OneProcess
from nbllm.finetuning.alignment.policy_loss import averaged, clipped_surrogate
from nbllm.finetuning.alignment.prompts import Prompt
from nbllm.finetuning.alignment.rollout_stepper import RolloutStepper
from nbllm.finetuning.alignment.rollouts import Answers
from nbllm.models.loading import load_model
from nbllm.objectives import OBJECTIVES
from nbllm.training.config import TrainConfig
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers.adamw import AdamW
from nbllm.training.train_state import TrainState

PROMPTS, SAMPLES, LONGEST = ("Why", "What is a list for"), 3, 7
REWARDS = [1.0, 0.0, 3.0, 0.5, 0.5, 2.0]


@pytest.fixture(scope="module")
def tokenizer():
    made = nb.data.train_tokenizer(nb.data.load("pydocs").select(range(4)), vocab_size=320)
    made.add_special_tokens({"pad_token": "<|pad|>"})
    return made


class Case:
    """A reference, a policy that has left it, and answers of different lengths to two prompts."""

    def __init__(self, tokenizer, folder):
        self.tokenizer, self.folder = tokenizer, folder
        self.lm = nb.LM.new(
            "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
        )
        draw = torch.Generator().manual_seed(5)
        lengths, end = (7, 2, 5, 1, 4, 7), tokenizer.eos_token_id
        tokens = [torch.randint(3, 300, (length,), generator=draw).tolist() for length in lengths]
        tokens = [[*answer[:-1], end] if len(answer) < LONGEST else answer for answer in tokens]
        prompts = [text for text in PROMPTS for _ in range(SAMPLES)]
        self.answers = Answers(
            [Prompt(text) for text in prompts], [tokenizer(text)["input_ids"] for text in prompts], tokens,
            [answer[-1] == end for answer in tokens], tokenizer.batch_decode(tokens),
        )  # fmt: skip

    @torch.no_grad()
    def move(self, size, seed):
        """Move all weights of the policy."""
        draw = torch.Generator().manual_seed(seed)
        for parameter in self.lm.model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=draw)

    def stepper(self, method, **settings):
        config = TrainConfig.from_dict(
            {
                "objective": method, "prompts": len(PROMPTS), "samples": SAMPLES, "max_new_tokens": LONGEST,
                "batch_size": 8, "sequence_length": 64, "kl_coefficient": 0.3, "updates": 2, **settings,
            }
        )  # fmt: skip
        objective = OBJECTIVES[method].for_tokenizer(self.tokenizer)
        objective.configure(config.objective_settings)
        objective.begin_with(self.lm.model)
        optimizer = Optimizer(OneProcess(self.lm.model), AdamW)
        stepper = RolloutStepper(objective, optimizer, None, config, "cpu")
        stepper.configure(TrainState(values=config.values).values)
        return stepper

    def known(self, stepper):
        """Return the answers with all that is known before the first update."""
        batch = self.answers.to_batch("cpu")
        batch |= stepper._observed(batch)
        return batch | stepper.objective.advantages(batch, torch.tensor(REWARDS))

    def gradients(self):
        found = {name: parameter.grad.clone() for name, parameter in self.lm.model.named_parameters()}
        self.lm.model.zero_grad()
        return found

    def trainer(self, kind, arguments, **settings):
        """Return trl's trainer of transformers' model, with the same reference, which is given these answers."""
        self.lm.save(self.folder / "model")
        model = AutoModelForCausalLM.from_pretrained(self.folder / "model")
        made = arguments(
            output_dir=str(self.folder / "trl"), report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
            per_device_train_batch_size=len(REWARDS), num_generations=SAMPLES, num_iterations=2, beta=0.3,
            max_completion_length=LONGEST, gradient_checkpointing=False, **settings,
        )  # fmt: skip
        rewards = {tuple(tokens): reward for tokens, reward in zip(self.answers.tokens, REWARDS, strict=True)}

        def reward(completion_ids, **_):
            return [rewards[tuple(ids)] for ids in completion_ids]

        data = Dataset.from_list([{"prompt": text} for text in PROMPTS])
        trainer = kind(
            model=model, reward_funcs=reward, args=made, train_dataset=data,
            processing_class=copy.deepcopy(self.tokenizer),
        )  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    def scored(self, trainer, generated):
        """Let trl score these answers with the policy as it is now."""
        self.publish(trainer)
        trainer._generate = lambda prompts: generated
        return trainer._generate_and_score_completions(
            [{"prompt": prompt.content} for prompt in self.answers.prompts]
        )

    def publish(self, trainer):
        self.lm.save(self.folder / "policy")
        theirs = AutoModelForCausalLM.from_pretrained(self.folder / "policy")
        trainer.model.load_state_dict(theirs.state_dict())
        trainer.model.train()

    def compare(self, loss, gradients, theirs, trainer):
        assert abs(float(loss.detach()) - float(theirs.detach())) < 1e-5
        theirs.backward()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.copy_(parameter.grad)
        trainer.model.save_pretrained(self.folder / "gradients")
        for name, parameter in load_model(self.folder / "gradients").named_parameters():
            torch.testing.assert_close(gradients[name], parameter.detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def case(tokenizer, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Case(tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("normalization", "theirs"),
    [
        ("grpo", {"loss_type": "grpo"}),
        ("grpo", {"loss_type": "grpo", "use_bias_correction_kl": False}),
        ("dr_grpo", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("token_mean", {"loss_type": "dapo"}),
    ],
)
def test_grpo(case, normalization, theirs):
    from trl import GRPOConfig, GRPOTrainer

    trainer = case.trainer(GRPOTrainer, GRPOConfig, temperature=0.8, **theirs)
    stepper = case.stepper(
        "grpo", normalization=normalization, temperature=0.8,
        unbiased_kl_gradient=theirs.get("use_bias_correction_kl", True),
    )  # fmt: skip
    case.move(0.02, seed=1)
    known, a = case.known(stepper), case.answers
    inputs = case.scored(trainer, (a.prompt_tokens, a.tokens, None, a.texts, None, {}, None, None))
    torch.testing.assert_close(known["advantages"], inputs["advantages"])
    for ours, name in (("old", "old_per_token_logps"), ("reference", "ref_per_token_logps")):
        torch.testing.assert_close(
            known[ours], inputs[name] * inputs["completion_mask"], rtol=1e-4, atol=1e-5
        )
    case.move(0.03, seed=2)  # so that ratios leave 1, and some their bounds
    loss, count = stepper.objective.loss(case.lm.model, known)
    (loss / count).backward()
    gradients = case.gradients()
    case.publish(trainer)
    case.compare(loss / count, gradients, trainer._compute_loss(trainer.model, inputs), trainer)


def test_rloo(case):
    from trl import RLOOConfig, RLOOTrainer

    trainer = case.trainer(RLOOTrainer, RLOOConfig, temperature=0.8)
    stepper = case.stepper("rloo", temperature=0.8)
    case.move(0.02, seed=1)
    known, a = case.known(stepper), case.answers
    inputs = case.scored(trainer, (a.prompt_tokens, a.tokens, a.texts))
    torch.testing.assert_close(known["advantages"], inputs["advantages"], rtol=1e-4, atol=1e-5)
    case.move(0.01, seed=2)
    loss, count = stepper.objective.loss(case.lm.model, known)
    (loss / count).backward()
    gradients = case.gradients()
    case.publish(trainer)
    case.compare(loss / count, gradients, trainer._compute_loss(trainer.model, inputs), trainer)


def test_the_clipped_loss_of_ppo(case):
    """Trl has no PPO any more; its GRPO takes an advantage for each token, and is then PPO's loss of the policy."""
    from trl import GRPOConfig, GRPOTrainer

    trainer = case.trainer(GRPOTrainer, GRPOConfig, loss_type="bnpo")
    stepper = case.stepper("ppo", samples=SAMPLES, kl_coefficient=0.0)
    case.move(0.02, seed=1)
    known, a = case.known(stepper), case.answers
    trainer.beta = 0.0
    inputs = case.scored(trainer, (a.prompt_tokens, a.tokens, None, a.texts, None, {}, None, None))
    inputs["advantages"] = known["advantages"]
    case.move(0.03, seed=2)
    seen = stepper.objective.seen(case.lm.model, known)
    losses, is_clipped = clipped_surrogate(seen.log_probs, known["old"], known["advantages"], clip=0.2)
    assert (is_clipped & known["mask"]).any()
    loss, count = averaged(losses, known["mask"], over="token", longest=0)
    (loss / count).backward()
    gradients = case.gradients()
    case.publish(trainer)
    case.compare(loss / count, gradients, trainer._compute_loss(trainer.model, inputs), trainer)
