import pytest
import torch

from nbllm.nn import products


@pytest.mark.parametrize(("unit", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_multiplied_in_what_the_machine_is_made_for(monkeypatch, unit, expected):
    monkeypatch.setattr(products, "has_bfloat16_unit", lambda: unit)
    assert products.product_dtype(torch.zeros(1, dtype=torch.bfloat16)) == expected
    assert products.product_dtype(torch.zeros(1)) == torch.float32
    assert products.product_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64
    assert products.product_dtype(torch.zeros(1, dtype=torch.bfloat16, device="meta")) == torch.bfloat16
