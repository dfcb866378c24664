"""Reading a transformers `config.json` so that no setting is dropped in silence."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from nbllm.core.errors import WeightsError, nearest
from nbllm.core.terminal import shorten

# Settings that any transformers configuration may carry and that do not change what the model computes:
# identity, token ids, caching, what a call returns; dropout, which is for training; other heads; sampling.
WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path
    _num_labels n_special predict_special_tokens
    architectures attn_implementation auto_map bos_token_id cache_implementation chunk_size_feed_forward dtype
    eos_token_id
    experts_implementation finetuning_task gradient_checkpointing id2label is_decoder
    ignore_index initializer_factor
    is_llama_config keys_to_ignore_at_inference label2id loss_type max_seq_len max_sequence_length
    model_max_length model_type neftune_noise_alpha num_labels output_attentions
    output_hidden_states output_past pad_token_id pretraining_tp problem_type
    reorder_and_upcast_attn return_dict router_aux_loss_coef sep_token_id seq_length
    task_specific_params tf_legacy_loss
    tie_encoder_decoder tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    use_flash_attn use_flash_attention

    activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout
    classifier_dropout_prob dropout embd_pdrop hidden_dropout hidden_dropout_prob layerdrop qa_dropout resid_pdrop
    seq_classif_dropout

    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj

    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_scores prefix remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()
)

# Settings of which just one value is implemented, with which they change nothing; None (off) always is.
IMPLEMENTED: dict[str, Any] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "quantization_config": None,
    "alibi": False,
    "attention_out_bias": False,
    "clip_qkv": None,
    "embedding_multiplier": 1.0,
    "is_causal": True,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "mlp_only_layers": [],
    "num_experts": 0,
    "num_local_experts": 0,
    "num_nextn_predict_layers": 0,
    "partial_rotary_factor": 1.0,
    "qk_layernorm": False,
    "residual_multiplier": 1.0,
    "rope_interleaved": False,
    "use_alibi": False,
    "use_bidirectional_attention": False,
    "use_mrope": False,
    "use_parallel_residual": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
}
MAX_INTEGER = 2**31  # no model has a size beyond it
MAX_FLOAT = sys.float_info.max


class ConfigReader:
    """A `config.json`, read key by key; `finish` refuses what nobody read.

    Args:
        values: The decoded JSON.
        where: The file, for errors.
    """

    def __init__(self, values: Mapping[str, Any], where: object) -> None:
        self._values = dict(values)
        self._where = where
        self._read: set[str] = set()

    def where(self, key: str) -> str:
        """Return the place of `key`, for errors about what it holds."""
        return f"{self._where}, {key}"

    def integer(self, key: str, default: int, *, least: int = 1, most: int = MAX_INTEGER) -> int:
        """Return a whole number of at least `least` and at most `most`; `default` where the key is absent or null."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._error(key, value, f"a whole number greater than {least - 1}")
        if value > most:
            raise self._error(key, value, f"at most {most:,}")
        return value

    def number(
        self, key: str, default: float, *, most: float = MAX_FLOAT, may_be_zero: bool = False
    ) -> float:
        """Return a number greater than zero and at most `most`; `default` where the key is absent or null.

        Args:
            key: The setting.
            default: Where it is not stated.
            most: The greatest allowed.
            may_be_zero: Whether zero is allowed.
        """
        value = self._get(key, default)
        if may_be_zero and value == 0 and not isinstance(value, bool):
            return 0.0
        # An integer may be beyond every float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_FLOAT:
            raise self._error(key, value, f"a number{' of at least' if may_be_zero else ' greater than'} 0")
        if value > most:
            raise self._error(key, value, f"at most {most:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; `default` where the key is absent or null."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def choice(self, key: str, default: str, known: Mapping[str, str]) -> str:
        """Return our name for one of transformers' names."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in known:
            raise self._error(key, value, f"one of {', '.join(known)}")
        return known[value]

    def mapping(self, key: str) -> dict[str, Any]:
        """Return a nested object; empty where the key is absent or null."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._error(key, value, "an object")
        return value

    def only(self, key: str, implemented: Any) -> None:
        """Refuse any value of `key` but `implemented` (or null)."""
        value = self._get(key, implemented)
        if value != implemented:
            raise self._not_implemented(key, value, repr(implemented))

    def texts(self, key: str, count: int) -> list[str] | None:
        """Return a list of `count` texts; None where the key is absent or null."""
        value = self._get(key, None)
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(isinstance(each, str) for each in value)
        ):
            raise self._error(key, value, f"a list of {count} texts, one for each layer (num_hidden_layers)")
        return value

    def all_layers(self, key: str, implemented: str, num_layers: int) -> None:
        """Refuse a list with an entry for each layer unless every one is `implemented`; null is as if absent."""
        value = self.texts(key, num_layers)
        if value is not None and set(value) != {implemented}:
            raise self._not_implemented(key, value, f"{implemented!r} in every layer")

    def is_null(self, key: str) -> bool:
        """Return whether `key` is stated, as null: off, where to state nothing means a default."""
        return key in self._values and self._values[key] is None

    def states(self, key: str) -> bool:
        """Return whether `key` is stated, and not as null."""
        return self._values.get(key) is not None

    def required(self, key: str) -> None:
        """Refuse a `key` that is stated as null."""
        if self.is_null(key):
            raise self._error(key, None, "stated")

    def ignore(self, key: str) -> None:
        """Count `key` as read: another setting has made sure that it says nothing."""
        self._read.add(key)

    def finish(self) -> None:
        """Refuse every setting that was not read and could change what the model computes."""
        for key in sorted(IMPLEMENTED.keys() - self._read):
            self.only(key, IMPLEMENTED[key])
        for key in sorted(self._values.keys() - self._read - WITHOUT_EFFECT):
            if self._values[key] is not None:
                raise WeightsError(
                    f"The setting {key!r} ({_shown(self._values[key])}) is not implemented for this family.",
                    where=self._where,
                    hint="It is refused because to drop it could change the output. "
                    + nearest(key, self._read - IMPLEMENTED.keys()),
                )

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def _error(self, key: str, value: object, expected: str) -> WeightsError:
        return WeightsError(f"{key} is {_shown(value)}; it must be {expected}.", where=self._where)

    def _not_implemented(self, key: str, value: object, implemented: str) -> WeightsError:
        return WeightsError(
            f"{key} is {_shown(value)} in this model's configuration; nbllm implements only {implemented}.",
            where=self._where,
            hint="This model cannot be opened without changing what it computes.",
        )


def _shown(value: object) -> str:
    """Return a value for a message, shortened."""
    try:
        return shorten(repr(value), 200)
    except RecursionError:
        return "nested too deeply"
