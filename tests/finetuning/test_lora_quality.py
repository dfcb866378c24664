"""LoRA learns nearly what full fine-tuning does, with a fiftieth of the parameters: measured on a published model."""

import pytest

import nbllm as nb
from nbllm.core.errors import FetchError
from nbllm.finetuning import forgetting
from nbllm.models.zoo.fetching import fetch

NAME = "smollm2-135m-instruct"
EVERY_MATRIX = ("query", "key", "value", "output", "gate", "up", "down")


@pytest.mark.slow
@pytest.mark.realmodel
def test_the_held_out_loss_is_within_a_twentieth_of_full_fine_tunings(tmp_path):
    try:
        fetch(NAME)
    except FetchError as error:
        pytest.skip(error.what)
    train, held_out = nb.data.split(nb.data.load("pydocs"), 0.1, seed=0)
    found = {}
    for name, adapter, lr in (("lora", nb.LoRA(rank=8, targets=EVERY_MATRIX), 5e-4), ("full", None, 5e-5)):
        lm = nb.load(NAME)
        run = nb.finetune(
            lm, train, method="continued", validation=held_out, adapter=adapter, name=name, folder=tmp_path, steps=12,
            lr=lr, batch_size=1, sequence_length=256, validation_tokens=2000, validation_interval=0, sample_interval=0,
            checkpoint_interval=0, precision="float32",
        )  # fmt: skip
        run.wait(progress=False)
        assert run.state == "finished"
        found[name] = run.events("evaluation")[-1]["loss"]
        if adapter is not None:
            trained = sum(each.num_parameters for each in lm.adapters)
            assert trained < 0.02 * (lm.num_parameters - trained)
            before = forgetting(run).before["domain"]
    assert max(found.values()) < before - 0.02
    assert found["lora"] < 1.05 * found["full"]
