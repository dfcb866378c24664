"""The documents that the rules are compared on, made once."""

import pyarrow as pa
import pytest

from nbllm.data.arrow_text import Texts
from tests.data.quality.documents import documents


@pytest.fixture(scope="session")
def many():
    """10,000 documents."""
    return documents(10_000)


@pytest.fixture(scope="session")
def many_texts(many):
    return Texts.of(pa.array(many))
