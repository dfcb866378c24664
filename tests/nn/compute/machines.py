"""Made-up profiles of machines that are not here: rates as such processors have them, in GFLOP/s."""

from nbllm.nn.compute.profile import MachineProfile

ROWS = (8, 64, 256, 1024)


def machine(
    float32,
    bfloat16,
    onednn=None,
    *,
    fused=4.0,
    attention=None,
    device="cpu",
    threads=2,
    cores=2,
    bandwidth=15e9,
):
    """Return the profile of a machine with these rates, of which few rows get a share."""
    rates = {"float32": float32, "bfloat16": bfloat16}
    if onednn is not None:
        rates["float32_onednn"] = onednn
    return MachineProfile(
        device=device,
        processor="<made up>",
        versions={"torch": "2"},
        num_threads=threads,
        cores=cores,
        rows=ROWS,
        matmul_rates={
            name: tuple(share * rate * 1e9 for share in (0.3, 0.7, 0.9, 1.0)) for name, rate in rates.items()
        },
        memory_bandwidth=bandwidth,
        fused_speedups={} if fused is None else {"float32": fused},
        attention_times=attention or {},
        steady=True,
    )


MACHINES = {
    "Intel with AMX": machine(350, 2500, 360),
    "AMD, avx512_bf16, no AMX": machine(195, 415, 195),
    "AMD, MKL without AVX-512": machine(
        215,
        930,
        480,
        attention={
            "float32": {"sdpa": 8.3e-3, "blocked": 6.8e-3, "per_head": 5.2e-3},
            "bfloat16": {"sdpa": 8.6e-3, "blocked": 3.3e-3},
        },
    ),
    "AVX-512 without bfloat16": machine(320, 167, 310),
    "old, without AVX2": machine(20, 3, 20),
    "Arm with BF16": machine(90, 300, 85, threads=4, cores=4),
    "Arm without BF16, no kernels": machine(60, 6, None, fused=None, threads=8, cores=4),
    "GPU": machine(50_000, 700_000, fused=None, device="cuda", bandwidth=4e12),
    "GPU without bfloat16": machine(9_000, 700, fused=None, device="cuda", bandwidth=3e11),
}
