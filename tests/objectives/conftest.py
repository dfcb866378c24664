import numpy as np
import pytest

import nbllm as nb
from nbllm.objectives import OBJECTIVES


@pytest.fixture(scope="session")
def texts():
    return nb.data.load("pydocs").select(range(12))


@pytest.fixture(scope="session")
def tokenizer(texts):
    """It has the special tokens of all objectives."""
    return nb.objectives.add_tokens(nb.data.train_tokenizer(texts, vocab_size=400), *OBJECTIVES)


@pytest.fixture(scope="session")
def plain(tokenizer):
    """Return random text of regular tokens alone, of a shape: (row, token)."""
    regular = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def make(*shape):
        return regular[np.random.default_rng(1).integers(len(regular), size=shape)]

    return make
