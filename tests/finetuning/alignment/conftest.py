"""Pairs of answers of different lengths, and a tokenizer with a padding token of its own."""

import copy
import warnings

import pytest


@pytest.fixture(scope="session")
def pairs():
    return [
        {"prompt": "Name a list.", "chosen": " It is a list of numbers.", "rejected": " No."},
        {"prompt": "Why?", "chosen": " Because", "rejected": " That is how a function returns."},
        {"prompt": "What is a tuple for?", "chosen": " For values that stay.", "rejected": " For x and y."},
    ]


@pytest.fixture(scope="session")
def plain_tokenizer(tokenizer):
    """Without a chat template, so that prompts and answers are texts."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = None
    made.add_special_tokens({"pad_token": "<|pad|>"})
    return made


@pytest.fixture
def trl():
    """Trl, whose own warnings are not errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl

        yield trl
