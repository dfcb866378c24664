"""Ranks that the tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.pool import Pool
from tests.training.conftest import texts as texts, tokenizer as tokenizer


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Pool]:
    """Call `two_ranks(function, *args)`: what the function returns on each of two ranks."""
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[Pool]:
    """The same on four ranks."""
    pool = Pool(4)
    yield pool
    pool.close()
