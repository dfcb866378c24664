"""torch's own tensor parallelism on two processes computes what one process does: parameters are separate by name."""

import subprocess
import sys

SCRIPT = """
import copy, sys
import torch
from torch.distributed import init_process_group, destroy_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from nbllm.models import Decoder, make_config

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
for name, grouped in (("gpt2", {}), ("llama", {"num_kv_heads": 2, "attention_bias": True})):
    shape = dict(vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, initializer_range=0.2, **grouped)
    whole = Decoder(make_config(name, **shape), seed=1)
    parallel = copy.deepcopy(whole)
    for block in parallel.blocks:
        plan = {f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")}
        plan |= {"attention.output": RowwiseParallel(), "feed_forward.down": RowwiseParallel()}
        plan |= {f"feed_forward.{name}": ColwiseParallel() for name in block.feed_forward.joined or ("up",)}
        parallelize_module(block, mesh, plan)
    tokens = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(0))
    expected, logits = whole(tokens), parallel(tokens)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for model, out in ((whole, expected), (parallel, logits)):
        out.square().mean().backward()
    wanted = dict(whole.named_parameters())
    for path, parameter in parallel.named_parameters():
        grad = parameter.grad
        if hasattr(grad, "full_tensor"):
            assert parameter.to_local().numel() < parameter.numel() or path.endswith("bias"), path
            grad = grad.full_tensor()
        torch.testing.assert_close(grad, wanted[path].grad, atol=1e-5, rtol=1e-4, msg=lambda text: f"{path}: {text}")
destroy_process_group()
"""


def test_column_and_row_parallel_layers_give_the_same_logits_and_gradients(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
