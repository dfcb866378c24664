"""Opening a model with its tokenizer: a directory, a GGUF file, a run's weights, or a published model by its name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nbllm.core.dtypes import float_dtype
from nbllm.core.errors import UserError, WeightsError
from nbllm.core.io import expand_user
from nbllm.lm import LM

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from nbllm.models.network import Network
    from nbllm.runs.recorded import RecordedRun


def load(
    path: Path | str | RecordedRun,
    *,
    at_step: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | str | None = None,
) -> LM:
    """Open a model: a directory, ours or transformers', a GGUF file, a run's weights, or a model by its name.

    A directory may hold a training checkpoint of Megatron-LM, or one of DeepSpeed with the model's `config.json` beside
    it; nothing that their pickles say is run.

    Args:
        path: The directory or the file; a run, its folder or its name in `runs/`; or the name of one of
            `nbllm.models()`, which is downloaded where it is not here. What exists comes before a name, and a run
            before a published model.
        at_step: Of a run, the step of the checkpoint; `None` is its newest good one.
        tokenizer: To use instead of its own.
        dtype: What to hold the weights in, such as "bfloat16"; None: as stored, or float32 where they are quantized. In
            bfloat16 a model answers about twice as fast as in float32, for half as much is read for each token.

    Raises:
        UserError: What is given is neither a path nor a run, `at_step` is given for no run, or there is no such dtype.
        WeightsError: There is no model, or its configuration, weights or tokenizer cannot be used; or the run has no
            such checkpoint.
        FetchError: A published model is not here and cannot be had; the message says the two ways to get it.
        CacheError: It cannot be written to the cache.
    """
    from nbllm.models.zoo.fetching import locate
    from nbllm.runs import model_checkpoint

    dtype = None if dtype is None else float_dtype(dtype)
    run = model_checkpoint.run_meant(path)
    if run is None:
        if at_step is not None:
            raise UserError(f"at_step={at_step} is for runs, and this is none.", where=path)
        path = cast("Path | str", path)
        place = locate(path, also=model_checkpoint.names_of_runs())
        model_checkpoint.check_no_folder_of_runs(place)
        lm = _open(place, tokenizer, dtype)
        lm.origin = _name_of(expand_user(path).resolve())
        return lm
    while True:
        info = model_checkpoint.find(run, at_step)
        try:
            lm = _open(info.path, tokenizer, dtype)
        except (UserError, OSError):
            if info.path.exists():
                raise
            continue  # the run goes on, and deleted this checkpoint for a newer one while it was read
        lm.origin = run.name if at_step is None else f"{run.name} at step {at_step}"
        return lm


def export(run: Path | str | RecordedRun, path: Path | str, *, at_step: int | None = None) -> Path:
    """Write a run's model as a directory of Hugging Face layout: `load` and transformers open it.

    A model of which several ranks wrote parts is written file by file, so that it need not fit into memory.

    Args:
        run: The run, its folder or its name in `runs/`.
        path: The directory; as in `LM.save`.
        at_step: The step of the checkpoint; None is the newest good one.

    Returns:
        The path.

    Raises:
        UserError: It is no run, or `path` is in use for something else.
        WeightsError: The run has no such checkpoint, or it is damaged.
        OSError: The disk is full or the path cannot be written.
    """
    from nbllm.models.exporting import write_exported
    from nbllm.models.replacing import replacing_model
    from nbllm.models.tensor_shards import is_sharded
    from nbllm.runs import model_checkpoint

    folder = model_checkpoint.run_meant(run)
    if folder is None:
        raise UserError(
            "There is a model, not a run.", where=run, hint="nb.load(path).save(folder) copies it."
        )
    while True:
        info = model_checkpoint.find(folder, at_step)
        try:
            if not is_sharded(info.path):
                return _open(info.path, None, None).save(path)
            with replacing_model(expand_user(path)) as aside:
                write_exported(info.path, aside)
            return expand_user(path)
        except (UserError, OSError):
            if info.path.exists():
                raise  # else the run goes on, and deleted this checkpoint for a newer one while it was read


def _open(path: Path, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype | None) -> LM:
    """Open a model directory or a GGUF file; errors as `load`."""
    from nbllm.inference.recommended import usable, usable_end_tokens
    from nbllm.models.loading import load_model

    if path.suffix.lower() == ".gguf" or path.is_file():
        from nbllm.models import gguf

        header = gguf.read_header(path)
        tokenizer = gguf.read_tokenizer(header) if tokenizer is None else tokenizer
        model = gguf.load_weights(header, dtype=dtype)
        ends = usable_end_tokens(gguf.read_end_tokens(header), model.config.vocab_size, path)
        lm = LM(model, tokenizer, sampling=usable(gguf.read_sampling(header), path), end_tokens=ends)
    else:
        lm = assemble(load_model(path, dtype=dtype), path, tokenizer=tokenizer)
    return lm


def assemble(model: Network, directory: Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> LM:
    """Return a model with everything else that its directory holds: tokenizer, adapter, sampling, end tokens.

    Args:
        model: The network, which has the directory's configuration.
        directory: The model directory.
        tokenizer: To use instead of its own.

    Raises:
        WeightsError: The tokenizer cannot be used.
    """
    from nbllm.inference.decoder_tokens import stated_decoder_tokens
    from nbllm.inference.recommended import (
        GENERATION_CONFIG,
        read_generation_config,
        recommended_lengths,
        recommended_sampling,
        usable,
        usable_end_tokens,
        warn_of_left_out,
    )
    from nbllm.models.encoder_decoder import EncoderDecoder
    from nbllm.models.loading import read_config_file
    from nbllm.models.peft.checkpoint import read_adapters
    from nbllm.models.quantized import read_quantized
    from nbllm.models.tensor_files import weights_of

    tokenizer = load_tokenizer(directory) if tokenizer is None else tokenizer
    stated, where = read_generation_config(directory), directory / GENERATION_CONFIG
    warn_of_left_out(stated, where)
    is_pair = isinstance(model, EncoderDecoder)
    sampling = usable(recommended_sampling(recommended_lengths(stated) if is_pair else stated), where)
    size = model.config.vocab_size
    older = read_config_file(
        directory
    )  # the older place of what follows; many files have another model's end token
    if stated:
        ends = usable_end_tokens(stated.get("eos_token_id"), size, where)
    else:
        ends = usable_end_tokens(older.get("eos_token_id"), size, None)
    decoder_tokens = stated_decoder_tokens(stated or older, size, where) if is_pair else None
    lm = LM(model, tokenizer, sampling=sampling, end_tokens=ends, decoder_tokens=decoder_tokens)
    read_quantized(model, weights_of(directory))
    read_adapters(lm.adapter_stack, directory)
    return lm


def _name_of(path: Path) -> str:
    """Return the name of a model's folder or file; that of a checkpoint begins with its run's."""
    is_checkpoint = path.parent.name == "checkpoints" and (path.parents[1] / "run.json").exists()
    return f"{path.parents[1].name}/{path.name}" if is_checkpoint else path.name


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Open a model directory's tokenizer.

    Raises:
        WeightsError: It holds none, or a broken one.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise WeightsError(
            "The directory holds no tokenizer.", where=directory, hint="Give one: load(path, tokenizer=...)."
        )
    # It would warn that it has no class for the models of a layout of ours; none is needed for a tokenizer.
    said = logging.getLogger("transformers.configuration_utils")
    try:
        said.addFilter(_is_no_warning)
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # for a broken file: bare Exceptions, and panics of Rust, which are not even those
        raise WeightsError(f"The tokenizer cannot be read: {error}", where=directory) from error
    finally:
        said.removeFilter(_is_no_warning)
    longest = tokenizer.model_max_length
    if not isinstance(longest, (int, float)):
        raise WeightsError(
            f"The tokenizer's model_max_length is {longest!r}; it must be a number.", where=directory
        )
    return tokenizer


def _is_no_warning(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING
