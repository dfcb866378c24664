import io

import pytest
import torch

from nbllm.nn import products


@pytest.mark.parametrize(("amx", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_multiplied_in_what_the_machine_is_made_for(monkeypatch, amx, expected):
    monkeypatch.setattr(products, "has_bfloat16_products", lambda: amx)
    assert products.product_dtype(torch.zeros(1, dtype=torch.bfloat16)) == expected
    assert products.product_dtype(torch.zeros(1)) == torch.float32
    assert products.product_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64
    assert products.product_dtype(torch.zeros(1, dtype=torch.bfloat16, device="meta")) == torch.bfloat16


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features : fp asimd\n", False),
        ("flags : avx512_bf16\n", False),
    ],
)
def test_what_the_processor_says(monkeypatch, features, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("builtins.open", lambda path: io.StringIO(features))
    assert products.has_bfloat16_products.__wrapped__() == (expected and torch.backends.mkldnn.is_available())
