import contextvars
import threading

import pytest
import torch

from nbllm.nn.attention_backends import choose
from nbllm.nn.compute import decisions
from nbllm.nn.compute.decisions import (
    ComputeChoices,
    compute_choices,
    conclusions,
    current_choices,
    num_threads,
    training_dtype,
    use_choices,
)
from nbllm.nn.kernels import serves
from nbllm.nn.matmul import matmul_dtype

from .machines import MACHINES, ROWS, machine

ON_CPU = [name for name, profile in MACHINES.items() if profile.device == "cpu"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Intel with AMX", "bfloat16"),
        ("AMD, avx512_bf16, no AMX", "bfloat16"),
        ("AMD, MKL without AVX-512", "bfloat16"),
        ("AVX-512 without bfloat16", "float32"),
        ("old, without AVX2", "float32"),
        ("Arm with BF16", "bfloat16"),
        ("Arm without BF16, no kernels", "float32"),
        ("GPU", "bfloat16"),
        ("GPU without bfloat16", "float32"),
    ],
)
def test_the_dtype_to_train_in(name, expected):
    assert training_dtype(MACHINES[name]) == expected


@pytest.mark.parametrize(("ratio", "expected"), [(1.24, "float32"), (1.26, "bfloat16")])
def test_a_small_gain_is_not_worth_bfloat16(ratio, expected):
    assert training_dtype(machine(100, 100 * ratio)) == expected
    assert training_dtype(machine(50, 100 * ratio, 100)) == expected, "against the faster float32"


@pytest.mark.parametrize(
    ("name", "converted", "onednn", "fused"),
    [
        ("Intel with AMX", None, 8, ("float32",)),
        ("AMD, avx512_bf16, no AMX", None, None, ("float32",)),
        ("AMD, MKL without AVX-512", None, 8, ("float32",)),
        ("AVX-512 without bfloat16", 64, None, ("float32",)),
        ("old, without AVX2", 8, None, ("float32",)),
        ("Arm with BF16", None, None, ("float32",)),
        ("Arm without BF16, no kernels", 8, None, ()),
    ],
)
def test_how_a_cpu_computes(name, converted, onednn, fused):
    assert compute_choices(MACHINES[name]) == ComputeChoices(
        float32_matmuls_from=converted,
        onednn_matmuls_from=onednn,
        fused_kernels=fused,
        prompt_attention={"float32": "per_head", "bfloat16": "blocked"} if "MKL" in name else {},
    )


def test_kernels_that_are_slower_are_not_used():
    assert compute_choices(machine(100, 100, fused=0.9)).fused_kernels == ()


def test_a_prompts_attention_is_the_fastest_measured():
    profile = MACHINES["AMD, MKL without AVX-512"]
    with use_choices(compute_choices(profile)):
        for dtype, expected in (
            (torch.float32, "per_head"),
            (torch.bfloat16, "blocked"),
            (torch.float64, "sdpa"),
        ):
            prompt, short = (torch.zeros(1, 2, length, 8, dtype=dtype) for length in (128, 127))
            assert choose(prompt, prompt, causal=True, mask=None) == expected
            assert choose(short, short, causal=True, mask=None) == "sdpa"
            assert choose(prompt[:, :, :1], prompt, causal=True, mask=None) == "sdpa"
            assert choose(prompt, prompt, causal=False, mask=None) == "sdpa"
    said = dict(conclusions(profile))
    assert (
        said["Read prompts in bfloat16 by the attention backend 'blocked'"] == "sdpa 8.6 ms, blocked 3.3 ms"
    )


def test_no_more_threads_than_cores():
    assert num_threads(MACHINES["Arm without BF16, no kernels"]) == 4
    assert num_threads(machine(1, 1, threads=2, cores=8)) == 2


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_said_is_what_is_done(name):
    """And no two of the sentences contradict each other."""
    profile = MACHINES[name]
    said = dict(conclusions(profile))
    assert f"Train in {training_dtype(profile)}" in said
    if profile.device != "cpu":
        assert len(said) == 1
        return
    choices = compute_choices(profile)
    in_float32 = [text for text in said if text.endswith("rows or more in float32")]
    with use_choices(choices):
        for rows in (*ROWS, 100_000):
            operand = torch.zeros(1, dtype=torch.bfloat16)
            native = matmul_dtype(operand, rows) == torch.bfloat16
            fewest = int(in_float32[0].split()[4]) if in_float32 else None
            assert native == (fewest is None or rows < fewest)
        large = torch.zeros(1 << 16)
        assert serves("activations", large, elements=1 << 16) == ("Use compiled kernels in float32" in said)
    if "Train in bfloat16" in said:
        assert "Multiply bfloat16 matrices as they are" in said and not in_float32
    assert ("Multiply bfloat16 matrices as they are" in said) != bool(in_float32)
    onednn = [text for text in said if text.endswith("by oneDNN")]
    assert [
        f"Multiply float32 matrices of {choices.onednn_matmuls_from} rows or more by oneDNN"
    ] == onednn or (choices.onednn_matmuls_from is None and not onednn)
    assert f"Compute with {num_threads(profile)} threads" in said


def test_choices_come_back_from_a_record():
    choices = compute_choices(MACHINES["AVX-512 without bfloat16"])
    assert (
        ComputeChoices.from_record({"device": "cpu", **choices.to_dict(), "fused_kernels": ["float32"]})
        == choices
    )


def test_choices_hold_in_a_block_and_in_its_thread(monkeypatch):
    profiles = [MACHINES["Arm with BF16"], MACHINES["AVX-512 without bfloat16"]]
    first, second = map(compute_choices, profiles)
    monkeypatch.setattr(decisions, "machine_profile", lambda: profiles[0])
    seen = []
    with use_choices(second):
        thread = threading.Thread(target=lambda: seen.append(current_choices()))
        thread.start()
        thread.join()
        assert current_choices() == second
    outside = contextvars.Context()  # where nothing was chosen
    assert seen == [first] and outside.run(current_choices) == first
    del profiles[0]
    assert outside.run(current_choices) == second, "a profile that was measured again counts at once"
