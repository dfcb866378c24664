"""The loss and the gradients of supervised fine-tuning are those of trl's SFTTrainer, on a batch that it makes."""

import warnings

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM

from nbllm.finetuning import prepare
from nbllm.models.loading import load_model
from nbllm.objectives import OBJECTIVES

CHATS = [
    [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A list."},
        {"role": "user", "content": "Really so?"},
        {"role": "assistant", "content": "Yes, a list of lists."},
    ],
    [{"role": "user", "content": "Say one"}, {"role": "assistant", "content": "one"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
     {"role": "assistant", "content": "Because it is."}],
]  # fmt: skip
PAIRS = [{"prompt": "It", "completion": " is a list."}, {"prompt": "Why not:", "completion": " sets"}]


def trainer_of(model, tokenizer, rows, folder, **settings):
    """Return trl's trainer, which prepares the rows itself."""
    from trl import SFTConfig, SFTTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = SFTConfig(
            output_dir=str(folder), per_device_train_batch_size=len(rows), report_to=[], use_cpu=True, bf16=False,
            max_length=90, gradient_checkpointing=False, disable_tqdm=True, **settings,
        )  # fmt: skip
        return SFTTrainer(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(rows),
        )


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(
    ("rows", "settings"),
    [([{"messages": chat} for chat in CHATS], {"assistant_only_loss": True}), (PAIRS, {})],
    ids=["chats", "pairs"],
)
def test_loss_and_gradients_are_trls(lm, tokenizer, tmp_path, rows, settings, pack):
    lm.save(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer.pad_token = tokenizer.eos_token  # so that the real end and padding are one token
    try:
        trainer = trainer_of(theirs, tokenizer, rows, tmp_path / "trl", **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = next(iter(trainer.get_train_dataloader()))
            expected = trainer.compute_loss(theirs.train(), batch)
            expected.backward()
    finally:
        tokenizer.pad_token = None
    store = prepare(rows, tokenizer, length=90, pack=pack).store
    objective = OBJECTIVES["sft"].for_tokenizer(tokenizer)
    loss, count = objective.loss(lm.model, objective.batch(store.take(range(store.num_rows)), None))
    assert count == int((batch["labels"][:, 1:] != -100).sum())
    (loss / count).backward()
    assert abs(float(loss.detach()) / count - float(expected.detach())) < 1e-5
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    expected_gradients = dict(load_model(tmp_path / "gradients").named_parameters())
    for name, parameter in lm.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_gradients[name].detach(), rtol=1e-4, atol=1e-5)
