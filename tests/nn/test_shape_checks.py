import os

import jaxtyping
import pytest
import torch

from nbllm.nn.attention_backends import attend


@pytest.mark.skipif(os.environ.get("NBLLM_SHAPE_CHECKS") == "0", reason="the checks were switched off")
def test_a_wrong_shape_is_refused_where_it_enters():
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(jaxtyping.TypeCheckError):
        attend(query, query, query[..., :2], causal=True)
