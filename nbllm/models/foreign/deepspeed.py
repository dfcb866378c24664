"""Checkpoints of DeepSpeed: the float32 weights that ZeRO's ranks hold parts of.

Source: Rajbhandari et al. 2020, arXiv:1910.02054, and the layout of the files of DeepSpeed (deepspeed.ai).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.foreign.archive import StoredTensor, read_archive
from nbllm.models.foreign.inert import Inert
from nbllm.models.foreign.sources import Source

LATEST = "latest"  # the file that names the newest checkpoint's folder
_MODEL = "mp_rank_00_model_states.pt"
_RANK = re.compile(r"(?:.*_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(optim|model)_states\.pt")


def folder_of(directory: Path) -> Path | None:
    """Return the folder of a directory's newest DeepSpeed checkpoint, or itself; None where it has none.

    Raises:
        WeightsError: `latest` names a folder that is not there.
    """
    if next(directory.glob("*_model_states.pt"), None) is not None:
        return directory
    try:
        tag = (directory / LATEST).read_bytes()[:1000].decode().strip()
    except (OSError, ValueError):
        return None
    if Path(tag).name != tag or not (directory / tag).is_dir():
        raise WeightsError(
            f"The checkpoint {tag!r}, which the file {LATEST} names, is not there.",
            where=directory,
            hint="Copy it too, or write the name of another into the file.",
        )
    return directory / tag


def read_deepspeed(folder: Path) -> dict[str, Source]:
    """Return the weights of a checkpoint by the names of the module that was trained.

    Of ZeRO's stages 1, 2 and 3 they are the float32 weights that the optimizer updates; without ZeRO, the module's.
    Frozen parameters are in the dtype of the module.

    Args:
        folder: Of one step: "global_step500".

    Raises:
        WeightsError: Files of ranks are missing, damaged or hostile, or the model is laid out in a way that is not
            implemented: tensor or pipeline parallel, or with experts of their own files.
    """
    optimizers, models = _files(folder, "optim"), _files(folder, "model")
    first = models[0] if models else folder / _MODEL
    if not first.is_file():
        raise WeightsError(f"{first.name} is missing.", where=folder, hint="Copy the files of all ranks.")
    try:
        model = read_archive(first)
        if not optimizers:
            return _module(model, first)
        states = [read_archive(path)["optimizer_state_dict"] for path in optimizers]
        _check_ranks(states[0], len(optimizers), folder)
        if _number(states[0]["zero_stage"]) < 3:
            sources = dict(_stage_2(model["param_shapes"], states))
            untrained = model["module"].keys() - sources.keys()  # all else: frozen, buffers
        else:
            sources = dict(_stage_3(model["param_shapes"], [state["fp32_flat_groups"] for state in states]))
            sources |= _frozen(model, models, len(states), folder)
            untrained = model["module"].keys() & set(model.get("buffer_names") or ())
        shared = model.get("shared_params") or {}
        sources |= {name: _whole(model["module"][name]) for name in untrained - shared.keys()}
        return sources | {name: sources[same] for name, same in shared.items()}
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise WeightsError(
            f"The checkpoint is not laid out as DeepSpeed's are: {type(error).__name__}: {error}.",
            where=folder,
        ) from None


def _files(folder: Path, kind: str) -> list[Path]:
    """Return the files of ZeRO's ranks in order; refuse what is laid out otherwise."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.pt")):
        match = _RANK.fullmatch(path.name)
        is_parallel = re.search(r"mp_rank_(?!0+_)\d+", path.name)
        if is_parallel or path.name.startswith(("layer_", "expp_rank_")):
            what = "tensor parallel" if is_parallel else "pipeline parallel or has experts"
            raise WeightsError(
                f"The checkpoint's model is {what} ({path.name}), which is not implemented.",
                where=folder,
                hint="Merge it where it was trained: save 16-bit weights (save_16bit_model) or a Hugging Face folder.",
            )
        if match and match[3] == kind:
            found[int(match[1])] = path
    for rank in range(max(found, default=-1) + 1):
        if rank not in found:
            raise WeightsError(
                f"The {kind} states of rank {rank} are missing.",
                where=folder,
                hint="Copy the files of all ranks, of all machines.",
            )
    return [found[rank] for rank in sorted(found)]


def _check_ranks(state: Mapping[str, Any], found: int, folder: Path) -> None:
    counts = state["partition_count"]
    ranks = max(counts) if isinstance(counts, list) else counts
    if ranks != found:
        raise WeightsError(
            f"{ranks} ranks saved their states; the files of {found} are here.",
            where=folder,
            hint="Copy the files of all ranks, of all machines.",
        )


def _number(value: Any) -> int:
    """Return a number that may be of an enumeration."""
    return int(value.arguments[0]) if isinstance(value, Inert) else int(value)


def _module(model: Mapping[str, Any], path: Path) -> dict[str, Source]:
    """Return the weights of a module that no optimizer of ZeRO has parts of."""
    if model.get("param_shapes"):
        raise WeightsError(
            "The optimizer's states are missing; they hold the float32 weights.",
            where=path.parent,
            hint="Copy the files of all ranks: zero_pp_rank_*_optim_states.pt.",
        )
    return {name: _whole(tensor) for name, tensor in model["module"].items()}


def _whole(tensor: StoredTensor) -> Source:
    return Source(tensor.dtype, tensor.shape, tensor.read)


def _stage_2(
    groups: Sequence[Mapping[str, tuple[int, ...]]], states: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Source]]:
    """Yield the parameters of stages 1 and 2: each group's, one after the other, are cut into as many parts as ranks.

    The end of a group is padded, to a multiple of twice the ranks or not at all.
    """
    for index, shapes in enumerate(groups):
        parts: list[StoredTensor] = [state["single_partition_of_fp32_groups"][index] for state in states]
        unit, first = 2 * len(parts), 0
        for name, shape in shapes.items():
            count = math.prod(shape)
            yield name, Source(parts[0].dtype, tuple(shape), functools.partial(_read, parts, first, count))
            first += count
        held = sum(part.elements for part in parts)
        if -(-held // unit) != -(-first // unit):
            raise WeightsError(
                f"The ranks hold {held:,} elements of parameter group {index}; its parameters have {first:,}.",
                where=parts[0].path.parent,
                hint="Files of different steps or runs are mixed.",
            )


def _stage_3(
    groups: Sequence[Mapping[str, tuple[int, ...]]], ranks: Sequence[Sequence[StoredTensor]]
) -> Iterator[tuple[str, Source]]:
    """Yield the parameters of stage 3: each is cut into as many equal parts as ranks, the last one padded.

    The parts of a rank lie one after the other, over the bounds of its vectors.
    """
    first = 0
    for shapes in groups:
        for name, shape in shapes.items():
            count = math.prod(shape)
            share = -(-count // len(ranks))
            read = functools.partial(_read_shares, ranks, first, count)
            yield name, Source(ranks[0][0].dtype, tuple(shape), read)
            first += share
    for rank, parts in enumerate(ranks):
        if (held := sum(part.elements for part in parts)) != first:
            raise WeightsError(
                f"Rank {rank} holds {held:,} elements; its shares of the parameters have {first:,}.",
                where=parts[0].path,
                hint="Files of different steps or runs are mixed.",
            )


def _frozen(model: Mapping[str, Any], paths: Sequence[Path], ranks: int, folder: Path) -> dict[str, Source]:
    """Return the parameters of stage 3 that were not trained: each rank's model states have a part."""
    shapes = model.get("frozen_param_shapes")
    if not shapes:
        return {}
    if len(paths) != ranks:
        raise WeightsError(
            f"{ranks} ranks saved their model states; the files of {len(paths)} are here.",
            where=folder,
            hint="Copy the files of all ranks, of all machines.",
        )
    fragments = [read_archive(path)["frozen_param_fragments"] for path in paths]
    sources = {}
    for name, shape in shapes.items():
        parts: list[StoredTensor] = [each[name] for each in fragments]
        sources[name] = Source(
            parts[0].dtype, tuple(shape), functools.partial(_read, parts, 0, math.prod(shape))
        )
    return sources


def _read_shares(ranks: Sequence[Sequence[StoredTensor]], first: int, count: int) -> Tensor:
    """Return a parameter of stage 3 of `count` elements, whose shares begin at `first` in each rank's vectors."""
    share = -(-count // len(ranks))
    return torch.cat([_read(parts, first, share) for parts in ranks])[:count]


def _read(parts: Sequence[StoredTensor], first: int, count: int) -> Tensor:
    """Return `count` elements from the `first` on of vectors laid one after the other."""
    found, begin = [], 0
    for part in parts:
        low, high = max(first, begin), min(first + count, begin + part.elements)
        if low < high:
            found.append(part.read(low - begin, high - low))
        begin += part.elements
    whole = torch.cat(found) if found else torch.empty(0)
    if len(whole) != count:
        raise WeightsError("Part of a tensor is missing.", where=parts[0].path)
    return whole
