"""Examples for any metric of predictions, made from what it says of its inputs."""

from __future__ import annotations

import functools
import random

from nbllm.data import train_tokenizer
from nbllm.lm import LM

WORDS = "a cat sat on the mat 3 naïve dogs ran".split()


def example_of(features, chooser):
    """A value of a type that is described by names, lists and dictionaries."""
    if isinstance(features, str):
        return {
            "string": lambda: (
                " ".join(chooser.choices(WORDS, k=chooser.randint(4, 9)) * chooser.randint(0, 2)) or "one"
            ),
            "int64": lambda: chooser.randint(0, 1),
            "float64": chooser.random,
        }[features]()
    if isinstance(features, list):
        return [example_of(features[0], chooser) for _ in range(2)]
    return {name: example_of(each, chooser) for name, each in features.items()}


def examples_of(kind, count, seed=0):
    """Inputs of a metric by name; those of one example have the same id."""
    chooser = random.Random(seed)
    out = {
        name: [example_of(wanted.features[0], chooser) for _ in range(count)]
        for name, wanted in kind.inputs.items()
    }
    for values in out.values():
        for index, value in enumerate(values):
            if isinstance(value, dict) and "id" in value:
                value["id"] = str(index)
    return out


@functools.cache
def tiny(family):
    """A model with random weights, for metrics that read texts with one."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, vocab_size=270)
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 64}
    return LM.new(family, tokenizer=tokenizer, **shape)


def options_of(module):
    """The arguments without which a module cannot compute, or would open a published model."""
    if module == "perplexity":
        return {"model_id": tiny("llama")}
    return {"model_type": tiny("bert")} if module == "bertscore" else {}
