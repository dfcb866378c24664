"""A tokenizer with a template that marks answers, and a small model of it."""

import pytest

import nbllm as nb

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    made = nb.data.train_tokenizer(nb.data.load("pydocs").select(range(4)), vocab_size=320)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return made


@pytest.fixture
def lm(tokenizer):
    return nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=96, seed=1
    )
