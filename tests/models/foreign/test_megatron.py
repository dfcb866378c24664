"""Megatron core's names and layouts, written by torch.distributed.checkpoint: the same weights, bit for bit."""

import argparse
import io
import json
import os
import pickle
import re
import shutil

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from nbllm.core.errors import WeightsError
from nbllm.models import load_model

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STEP = "iter_0000005"
QKV = "self_attention.linear_qkv"


class InChunks(dcp.DefaultSavePlanner):
    """Writes tensors as the ranks of a pipeline and tensor parallel model do: by layers and in two halves."""

    def create_local_plan(self):
        self.boxes = {}
        items = []
        for name, tensor in self.state_dict.items():
            if not isinstance(tensor, torch.Tensor):
                index = MetadataIndex(name)
                items.append(WriteItem(index=index, type=WriteItemType.BYTE_IO))
                self.boxes[index] = tensor
                continue
            for offsets, box in boxes(name, tensor):
                index = MetadataIndex(name, offsets)
                data = TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(offsets), box.size()),
                    properties=TensorProperties.create_from_tensor(tensor),
                    size=tensor.size(),
                )
                items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
                self.boxes[index] = box.clone()
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, item):
        return self.boxes[item.index]


def boxes(name, tensor):
    """Yield where each part of a tensor begins, and the part."""
    stacked = int(re.search(r"decoder\.layers\.(?!\d)", name) is not None)
    for layer, rows in enumerate(tensor.split(1) if stacked else [tensor]):
        begin = 0
        for half in rows.tensor_split(2, dim=stacked):
            offsets = [0] * tensor.ndim
            offsets[0] = layer
            offsets[stacked] = begin
            begin += half.shape[stacked]
            yield offsets, half


def theirs(model, *, padding=7):
    """Return a model's weights as Megatron names and fuses them, by layer."""
    config, ours = model.config, {name: each.detach() for name, each in model.named_parameters()}
    out = {"embedding.word_embeddings.weight": ours["embedding.weight"]}
    if "head.weight" in ours:
        out["output_layer.weight"] = ours["head.weight"]
    for name, rows in out.items():
        out[name] = torch.cat([rows, torch.full((padding, rows.shape[1]), 9.0)])
    if "positions.weight" in ours:
        out["embedding.position_embeddings.weight"] = ours["positions.weight"]
    for kind in ("weight", "bias"):
        if f"norm.{kind}" in ours:
            out[f"decoder.final_layernorm.{kind}"] = ours[f"norm.{kind}"]
        for layer in range(config.num_layers):
            mine = {
                name.removeprefix(f"blocks.{layer}.").removesuffix(f".{kind}"): each
                for name, each in ours.items()
                if name.startswith(f"blocks.{layer}.") and name.endswith(kind)
            }
            parts = {
                f"{QKV}.{kind}": grouped(config, mine),
                f"{QKV}.layer_norm_{kind}": mine.get("attention_norm"),
                f"self_attention.linear_proj.{kind}": mine.get("attention.output"),
                f"self_attention.q_layernorm.{kind}": mine.get("attention.query_norm"),
                f"self_attention.k_layernorm.{kind}": mine.get("attention.key_norm"),
                f"mlp.linear_fc1.layer_norm_{kind}": mine.get("feed_forward_norm"),
                f"mlp.linear_fc1.{kind}": both(mine),
                f"mlp.linear_fc2.{kind}": mine.get("feed_forward.down"),
            }
            out |= {f"decoder.layers.{layer}.{n}": each for n, each in parts.items() if each is not None}
    return out


def both(mine):
    halves = [mine[name] for name in ("feed_forward.gate", "feed_forward.up") if name in mine]
    return torch.cat(halves) if halves else None


def grouped(config, mine):
    """Return queries, keys and values, group by group: the group's queries, its key, its value."""
    if "attention.query" not in mine:
        return None
    width, shared = config.head_dim, config.num_heads // config.num_kv_heads
    rows = []
    for group in range(config.num_kv_heads):
        rows.append(mine["attention.query"][group * shared * width : (group + 1) * shared * width])
        rows += [mine[f"attention.{part}"][group * width : (group + 1) * width] for part in ("key", "value")]
    return torch.cat(rows)


def together(tensors):
    """Return the tensors with those of all layers in one, as Megatron has them where layers are alike."""
    out, layers = {}, {}
    for name, tensor in tensors.items():
        if name.startswith("decoder.layers."):
            layers.setdefault(name.split(".", 3)[3], []).append(tensor)
        else:
            out[name] = tensor
    return out | {f"decoder.layers.{name}": torch.stack(each) for name, each in layers.items()}


def write(folder, tensors, arguments=None):
    here = folder / STEP
    others = {
        "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc2.weight": torch.zeros(4, 4),
        "decoder.layers.self_attention.core_attention._extra_state/shard_0_2": io.BytesIO(b"state"),
        "rng_state/shard_0.0_1.1": io.BytesIO(b"state"),
    }
    dcp.save(
        {**tensors, **others}, checkpoint_id=here, planner=InChunks(flatten_state_dict=False), no_dist=True
    )
    common = {"checkpoint_version": 3.0, "iteration": 5}
    torch.save(common | ({"args": argparse.Namespace(**arguments)} if arguments else {}), here / "common.pt")
    (here / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    (folder / "latest_checkpointed_iteration.txt").write_text("5")
    return here


def arguments_of(config, **changes):
    """Return what Megatron-LM's arguments would be."""
    is_llama = config.norm == "rms_norm"
    return {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "group_query_attention": config.num_kv_heads != config.num_heads,
        "num_query_groups": config.num_kv_heads,
        "kv_channels": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "padded_vocab_size": config.vocab_size,
        "position_embedding_type": "rope" if is_llama else "learned_absolute",
        "rotary_base": int(config.rope_theta),
        "normalization": "RMSNorm" if is_llama else "LayerNorm",
        "norm_epsilon": config.norm_eps,
        "swiglu": is_llama,
        "add_bias_linear": not is_llama,
        "add_qkv_bias": config.family == "qwen2",
        "qk_layernorm": config.family == "qwen3",
        "untie_embeddings_and_output_weights": not config.tie_embeddings,
        "num_experts": None,
        **changes,
    }


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox"])
def test_weights_of_a_configuration_in_the_folder(taken_apart, check_same, family):
    changes = {"parallel_block": False} if family == "gpt_neox" else {}
    model, _, folder = taken_apart(family, **changes)
    write(folder, together(theirs(model)))
    check_same(load_model(folder), model)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_the_arguments_say_the_configuration(taken_apart, check_same, family):
    model, _, folder = taken_apart(family)
    (folder / "config.json").unlink()
    write(folder, together(theirs(model, padding=0)), arguments_of(model.config))
    opened = load_model(folder)
    check_same(opened, model)
    tokens = torch.arange(20)[None]
    assert torch.equal(opened(tokens), model.eval()(tokens))


def test_a_tensor_for_each_layer(taken_apart, check_same):
    model, _, folder = taken_apart("llama")
    write(folder, theirs(model))
    check_same(load_model(folder), model)


def test_prefixes_and_halves_of_their_own(taken_apart, check_same):
    model, _, folder = taken_apart("llama")
    tensors = {}
    for name, tensor in together(theirs(model)).items():
        if name.endswith("linear_fc1.weight"):
            gate, up = tensor.chunk(2, dim=1)
            tensors |= {f"module.{name}_w": gate, f"module.{name}_v": up}
        else:
            tensors[f"module.{name}"] = tensor
    write(folder, tensors)
    check_same(load_model(folder), model)


def test_gains_that_are_stored_minus_one(taken_apart):
    model, _, folder = taken_apart("llama")
    tensors = together(theirs(model))
    for name in tensors:
        if "norm" in name:
            tensors[name] = tensors[name] - 1
    write(folder, tensors, {"apply_layernorm_1p": True})
    opened = load_model(folder)
    for (name, one), (_, other) in zip(opened.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def refused(folder, *words):
    with pytest.raises(WeightsError) as caught:
        load_model(folder)
    for word in words:
        assert word in str(caught.value), caught.value


def test_weights_that_are_missing_or_surplus(taken_apart):
    model, _, folder = taken_apart("llama")
    tensors = together(theirs(model))
    lost = tensors.pop("decoder.layers.mlp.linear_fc2.weight")
    here = write(folder, tensors)
    refused(folder, "mlp.linear_fc2.weight is missing", "blocks.0.feed_forward.down.weight")
    shutil.rmtree(here)
    write(
        folder,
        {**tensors, "decoder.layers.mlp.linear_fc2.weight": lost, "decoder.layers.mlp.router.weight": lost},
    )
    refused(folder, "surplus", "mlp.router.weight", "experts")


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"num_heads": 8}, "rows"), ({"intermediate_size": 40}, "rows"), ({"num_layers": 3}, "layers")],
)
def test_a_configuration_of_another_model(taken_apart, make_model, changes, word):
    _, _, folder = taken_apart("llama")
    write(folder, together(theirs(make_model("llama", **changes))))
    refused(folder, word, "config.json belongs to another model")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_experts": 8}, "experts"),
        ({"normalization": "LayerNorm"}, "LayerNorm"),
        ({"rotary_percent": 0.5}, "rotary"),
    ],
)
def test_arguments_of_models_that_are_not_known(taken_apart, changes, word):
    model, _, folder = taken_apart("llama")
    (folder / "config.json").unlink()
    write(folder, together(theirs(model)), arguments_of(model.config, **changes))
    refused(folder, word, "Put the model's config.json")


def test_a_missing_file(taken_apart):
    model, _, folder = taken_apart("llama")
    here = write(folder, together(theirs(model)))
    (here / "__0_0.distcp").unlink()
    refused(folder, "__0_0.distcp is missing", "Copy all the files")


def test_a_step_that_is_not_there(taken_apart):
    model, _, folder = taken_apart("llama")
    write(folder, together(theirs(model)))
    (folder / "latest_checkpointed_iteration.txt").write_text("6")
    refused(folder, "iter_0000006")


@pytest.mark.parametrize("file", ["common.pt", ".metadata"])
def test_a_hostile_pickle_runs_nothing_and_is_refused_by_name(taken_apart, calls, tmp_path, file):
    model, _, folder = taken_apart("llama")
    (folder / "config.json").unlink()
    here = write(folder, together(theirs(model)), arguments_of(model.config))
    made = tmp_path / "made"
    evil = calls(os.system, f"touch {made}")
    if file == "common.pt":
        torch.save({"args": evil}, here / file)
    else:
        (here / file).write_bytes(pickle.dumps(evil))
    refused(folder, "system", "nothing of it was run", file)
    assert not made.exists()


def test_hostile_tensors_run_nothing(taken_apart, calls, tmp_path):
    model, _, folder = taken_apart("llama")
    here = write(folder, together(theirs(model)))
    buffer, made = io.BytesIO(), tmp_path / "made"
    torch.save(calls(os.system, f"touch {made}"), buffer)
    path = here / "__0_0.distcp"
    path.write_bytes(buffer.getvalue().ljust(path.stat().st_size, b"\0"))
    refused(folder, "cannot be read")
    assert not made.exists()


def test_metadata_that_reaches_outside(taken_apart):
    model, _, folder = taken_apart("llama")
    here = write(folder, together(theirs(model)))
    metadata = pickle.loads((here / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../../secret"
    (here / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(folder, "no plain file name")


@pytest.mark.parametrize("keep", [0, 50, 500, -5])
def test_damaged_metadata(taken_apart, keep):
    model, _, folder = taken_apart("llama")
    path = write(folder, together(theirs(model))) / ".metadata"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, ".metadata cannot be read")
