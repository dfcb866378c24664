"""LM: a model and its tokenizer, made, saved, opened, asked."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from nbllm.core.errors import UserError
from nbllm.core.io import check_utf8, expand_user
from nbllm.core.signature import InWords, settings_of, takes, takes_later
from nbllm.inference.config import CHAT_SETTINGS, SamplingConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from nbllm.inference.chat_stream import ChatStream
    from nbllm.inference.decoder_tokens import DecoderTokens
    from nbllm.inference.filling import Fill
    from nbllm.inference.generation import Generation, Generations
    from nbllm.inference.streaming import StreamedText
    from nbllm.models.config import ModelConfig
    from nbllm.models.network import CausalNetwork, GenerativeNetwork, Network
    from nbllm.models.peft.adapter import Adapter
    from nbllm.models.peft.method import AdapterConfig
    from nbllm.models.peft.stack import AdapterStack

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class Score:
    """How probable a model finds a text.

    Attributes:
        log_probability: Natural logarithm of the text's probability: the sum over `num_tokens`.
        num_tokens: Tokens predicted.
        num_bytes: UTF-8 bytes of the text.
    """

    log_probability: float
    num_tokens: int
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of the text; comparable across tokenizers."""
        return -self.log_probability / math.log(2) / self.num_bytes if self.num_bytes else math.nan


def _shape_settings() -> list[inspect.Parameter]:
    """Return what `LM.new` takes beside its own parameters."""
    from nbllm.models.config import ModelConfig

    names = [field.name for field in dataclasses.fields(ModelConfig)]
    defaults = dict.fromkeys(names, InWords("the family's")) | {"vocab_size": InWords("the tokenizer's")}
    return settings_of(ModelConfig, (), **defaults)


class LM:
    """A language model: `.model`, a `torch.nn.Module`, and `.tokenizer`, which turns text into its ids.

    Args:
        model: The network.
        tokenizer: A transformers tokenizer, whose ids the model's vocabulary holds.
        sampling: Settings of `SamplingConfig` that its makers recommend; they are saved with it.
        end_tokens: Token ids that end a text, besides the tokenizer's end token; they are saved with it.
        decoder_tokens: Of an encoder-decoder: what its decoder's text begins and ends with; they are saved with it.
            None: it begins with the tokenizer's padding or end token, as is usual in its family.

    Attributes:
        sampling: The same, a dictionary. `chat` answers by those of sampling. `generate` does not, but searches with as
            many beams as are recommended, unless it is told how to choose tokens.
        origin: Where its weights come from: the name it was opened by (a published model's, that of its folder or
            file, or of a run), then the run that has trained it since; "" for a new model.
        lock: Guards the weights: whoever changes them, or reads them all at one moment, holds it.

    Raises:
        UserError: The tokenizer has more tokens than the model's vocabulary, or another padding token than the one
            from which the model counts positions (RoBERTa).
    """

    def __init__(
        self,
        model: Network,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sampling: Mapping[str, Any] | None = None,
        end_tokens: Sequence[int] = (),
        decoder_tokens: DecoderTokens | None = None,
    ) -> None:
        if len(tokenizer) > model.config.vocab_size:
            raise UserError(
                f"The tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}.",
                hint=f"Make the model with vocab_size={len(tokenizer)} or more, or give it its tokenizer.",
            )
        # A decoder (OPT) counts the tokens of its mask, whichever the padding token is.
        offset = model.config.position_offset if model.config.network == "encoder" else 0
        if offset and tokenizer.pad_token_id != offset - 1:
            raise UserError(
                f"This model does not count token {offset - 1}, as padding; the tokenizer's padding token is "
                f"{tokenizer.pad_token_id}.",
                hint=f"Make the model with position_offset={(tokenizer.pad_token_id or 0) + 1}, and the tokenizer "
                "with a pad_token.",
            )
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = dict(sampling or {})
        self._end_tokens = tuple(end_tokens)
        self._decoder_tokens = decoder_tokens
        self.origin = ""
        self.lock = threading.RLock()
        self._check_untrained: Callable[[], None] | None = None
        self._stack: AdapterStack | None = None
        self._resized = False
        self._endings_told: set[str] = set()

    @classmethod
    @takes_later(_shape_settings)
    def new(
        cls, family: str = "gpt2", *, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **config: Any
    ) -> LM:
        """Make a model with new weights.

        Args:
            family: A family ("gpt2", "llama") or a preset ("gpt2-medium", "smollm2-135m", ...).
            tokenizer: Its size is the vocabulary's unless `vocab_size` is given.
            seed: Of the weights.
            **config: Settings of `ModelConfig`: num_layers, hidden_size, num_heads, max_positions, ...

        Raises:
            UserError: An unknown name or setting, or a value out of range; the nearest known name is given.
        """
        from nbllm.models.network import build
        from nbllm.models.presets import make_config

        if not callable(tokenizer):
            raise UserError(
                f"tokenizer must be a transformers tokenizer, not {type(tokenizer).__name__}.",
                hint="nb.data.train_tokenizer(texts) makes one; AutoTokenizer.from_pretrained(path) opens one.",
            )
        shape = make_config(family, **{"vocab_size": len(tokenizer), **config})
        if shape.network == "encoder" and shape.position_offset and "position_offset" not in config:
            # RoBERTa's positions begin after the padding token's id, which is the tokenizer's to choose.
            pad = tokenizer.pad_token_id
            shape = shape.replace(position_offset=shape.position_offset if pad is None else pad + 1)
        return cls(build(shape, seed=seed), tokenizer)

    @property
    def model(self) -> Network:
        """The network; of one that `torch.compile` wrapped, what is inside, whose parameters are the same.

        Generation and training ask a network for more than calling it, which the wrapper would not compile.
        """
        return self._model

    @model.setter
    def model(self, model: Network) -> None:
        from nbllm.nn.compiled import unwrapped

        self._model = cast("Network", unwrapped(model))

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text: those given or stated in the model's files, and the tokenizer's own."""
        own = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*self._end_tokens, *([] if own is None else [int(own)])]))

    @property
    def decoder_tokens(self) -> DecoderTokens | None:
        """What the text of an encoder-decoder's decoder begins and ends with; None of any other model.

        Raises:
            UserError: Its files do not say, and the tokenizer has no token that is usual.
        """
        from nbllm.inference.decoder_tokens import usual_decoder_tokens
        from nbllm.models.encoder_decoder import EncoderDecoder
        from nbllm.models.families import FAMILIES

        if not isinstance(self.model, EncoderDecoder):
            return None
        start = FAMILIES[self.config.family].decoder_start
        return self._decoder_tokens or usual_decoder_tokens(self.tokenizer, start)

    def generative_network(self) -> GenerativeNetwork:
        """Return the network, which must be able to generate; refuse with the reason where it cannot."""
        from nbllm.models.network import check_can

        check_can(self.model, "generate")
        return cast("GenerativeNetwork", self.model)

    def causal_network_for(self, verb: str) -> CausalNetwork:
        """Return the network for `verb`, which only causal ones can do; refuse with the reason where it cannot."""
        from nbllm.models.network import CausalNetwork, check_can

        check_can(self.model, verb)
        if not isinstance(self.model, CausalNetwork):
            raise UserError(
                f"This model does not continue a text: it is {self.model.kind}.",
                hint="lm.generate(text) writes what follows from a text.",
            )
        return self.model

    @property
    def num_parameters(self) -> int:
        """How many elements the model's parameters have; a tied head counts once."""
        return self.model.num_parameters

    def copy(self) -> LM:
        """Return a model with weights of its own, equal to these: to be trained or changed while this one stays."""
        from nbllm.models.network import build_without_weights
        from nbllm.models.quantized import install_quantized, quantized_state
        from nbllm.nn.compiled import state_by_name

        model = build_without_weights(self.config).to(self.model.dtype).to_empty(device=self.model.device)
        on = [adapter for adapter in self.adapters if adapter.state == "on"]
        with self.lock:
            state = state_by_name(self.model)
            own = {adapter.name: {n: p.clone() for n, p in adapter.parameters().items()} for adapter in on}
            install_quantized(model, *quantized_state(self.model))
            model.load_state_dict({name: state[name] for name in model.state_dict()})
        model.attention_backend = self.model.attention_backend
        other = LM(
            model, self.tokenizer, sampling=self.sampling, end_tokens=self._end_tokens,
            decoder_tokens=self._decoder_tokens,
        )  # fmt: skip
        other.origin = self.origin
        for adapter in on:
            other.adapter_stack.attach(adapter.config, name=adapter.name, seed=None).load(own[adapter.name])
        for mine, adapter in zip(other.adapters, on, strict=True):
            mine.trains = adapter.trains
        other.adapter_stack.divide_training()
        return other

    @property
    def adapter_stack(self) -> AdapterStack:
        """The adapters on the model, one on the other: to switch between them, and to merge some."""
        from nbllm.models.peft.stack import AdapterStack

        if self._stack is None or self._stack.model is not self.model:
            self._stack = AdapterStack(self.model, guard=self.refuse_while_trained)
        return self._stack

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters on the model: switched on or off, or merged; each shows what it trains, and its memory."""
        return () if self._stack is None else tuple(self.adapter_stack.adapters)

    def attach(
        self, adapter: AdapterConfig | Path | str, *, name: str | None = None, seed: int = 0
    ) -> Adapter:
        """Attach an adapter: a new one, or one that was saved by `save_adapter` or by peft.

        Args:
            adapter: Settings, such as nb.LoRA(rank=8), nb.IA3() or nb.PrefixTuning(), or the folder of a saved one.
            name: Its name. With one, it is attached on top of others: all that are on act together, and only the newest
                is trained.
            seed: Of a new one.

        Returns:
            The adapter, which can be switched off and on, merged, unmerged and detached.

        Raises:
            UserError: The model has an adapter already, and no name was given; or the method makes no sense for this
                model, or a target names no layer of it.
            WeightsError: The saved one cannot be read, or does not fit this model.
            RunError: A run trains this model.
        """
        from nbllm.models.peft.files import read_peft
        from nbllm.models.peft.method import AdapterConfig

        if self.adapters and name is None:
            raise UserError(
                f"The model has an adapter already, which is {self.adapters[0].state}.",
                hint="Merge it for good (lm.merge(), lm.adapters[0].detach()), or only detach it; or give the new one "
                'a name to have both: lm.attach(nb.LoRA(), name="second").',
            )
        self.refuse_while_trained()
        with self.lock:
            if isinstance(adapter, AdapterConfig):
                return self.adapter_stack.attach(adapter, name=name, seed=seed)
            if not isinstance(adapter, (str, Path)):
                raise UserError(
                    f"adapter must be settings such as nb.LoRA(rank=8), or a folder, not {adapter!r}."
                )
            return read_peft(self.adapter_stack, expand_user(adapter), name=name)

    def merge(self) -> LM:
        """Write the adapters that are on into the weights, all together; `unmerge` restores these to the bit.

        It is said by how much the logits of some tokens differ from those before.

        Raises:
            UserError: There is no adapter, or its method cannot be written into weights.
            RunError: A run trains this model.
        """
        from nbllm.models.peft.merge_gap import merge_gap

        with self.lock:
            on = [adapter for adapter in self._some_adapters() if adapter.state != "off"]
            gap = merge_gap(self.model, lambda: self.adapter_stack.merge(*on))
        sys.stdout.write(f"Merged: the logits of a sample differ by at most {gap:.2g}.\n")
        return self

    def unmerge(self) -> LM:
        """Restore the weights to the bit; the adapters that were merged act beside them again.

        Raises:
            RunError: A run trains this model.
        """
        with self.lock:
            merged = [adapter for adapter in self.adapters if adapter.state == "merged"]
            self.adapter_stack.unmerge(*merged)
            for adapter in merged:
                adapter.on()
        return self

    def quantize(self, *, block_size: int = 64, double_quantization: bool = True) -> LM:
        """Hold the linear layers in 4 bits (NF4) from now on, in an eighth of the memory that float32 takes.

        Embedding, head and normalizations stay as they are. Each pass multiplies by ordinary numbers that it makes of
        the 4 bits, one layer at a time; an adapter can be trained beside them (`nb.QLoRA`).

        Args:
            block_size: Weights that share a scale.
            double_quantization: Whether the scales are quantized too, to 8 bits.

        Raises:
            UserError: They are already, a weight is not finite, or an adapter is merged.
            RunError: A run trains this model.

        Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.
        """
        from nbllm.models.quantized import quantize_layers

        with self._without_adapters():
            quantize_layers(self.model, block_size=block_size, double_quantization=double_quantization)
        return self

    def dequantize(self) -> LM:
        """Hold all weights as ordinary numbers again, with the values that they have in 4 bits.

        Raises:
            RunError: A run trains this model.
        """
        from nbllm.models.quantized import dequantize_layers

        with self._without_adapters():
            dequantize_layers(self.model)
        return self

    @contextlib.contextmanager
    def _without_adapters(self) -> Iterator[None]:
        """Switch adapters off for a while, in which the model's layers are changed."""
        self.refuse_while_trained()
        if any(adapter.state == "merged" for adapter in self.adapters):
            raise UserError("An adapter is merged.", hint="Unmerge it (lm.unmerge()), or detach it.")
        with self.lock, contextlib.ExitStack() as stack:
            for adapter in self.adapters:
                stack.enter_context(adapter.disabled())
            yield

    def save_adapter(self, path: Path | str, *, name: str | None = None) -> Path:
        """Save an adapter alone, in peft's layout: `attach` opens it, and peft does on the transformers model.

        Args:
            path: A folder that does not exist, or that holds an older adapter.
            name: Which; None: the newest.

        Raises:
            UserError: There is no adapter, peft has no such method, or the folder holds something else.
            OSError: The disk is full or the path cannot be written.
        """
        from nbllm.models.peft.files import write_peft

        path = expand_user(path)
        with self.lock:
            adapter = self._some_adapters()[-1] if name is None else self.adapter_stack[name]
            write_peft(self.model, adapter, path, base=self.origin, with_vocabulary=self._resized)
        return path

    def _some_adapters(self) -> tuple[Adapter, ...]:
        if not self.adapters:
            raise UserError(
                "The model has no adapter.", hint="Attach one: lm.attach(nb.LoRA(rank=8)), or train one."
            )
        return self.adapters

    def refuse_while_trained(self) -> None:
        """Raise `RunError` while a run trains this model."""
        if self._check_untrained is not None:
            self._check_untrained()

    def save(self, path: Path | str, *, dtype: str | None = None) -> Path:
        """Save model and tokenizer so that `load` and transformers open them; all of it or nothing.

        A path that ends in `.gguf` becomes a GGUF file, any other a directory of Hugging Face layout. In a directory
        that exists, the files of an older model are replaced and all others stay; a link is written through.

        Args:
            path: The directory or the file.
            dtype: Of a GGUF file's matrices: "F32", "F16" or "Q8_0"; None: as wide as the model's. A directory
                holds the weights as they are.

        Returns:
            The path.

        Raises:
            UserError: The family, or GGUF, cannot express this model, or what would be replaced is no model.
            OSError: The disk is full or the path cannot be written.
        """
        from nbllm.models.replacing import replacing_model

        path = expand_user(path)
        if any(adapter.state == "on" for adapter in self.adapters):
            raise UserError(
                "The model has an adapter, which its files would not hold.",
                hint="Merge it first (lm.merge()), or save it alone (lm.save_adapter(path)).",
            )
        if path.suffix.lower() == ".gguf":
            from nbllm.models.gguf import save_gguf
            from nbllm.models.quantized import quantized_layers

            if quantized_layers(self.model):
                raise UserError("GGUF has no NF4.", where=path, hint="Dequantize first: lm.dequantize().")
            with self.lock:
                save_gguf(
                    self.model, self.tokenizer, path, dtype=dtype, sampling=self.sampling,
                    end_tokens=self.end_tokens,
                )  # fmt: skip
            return path
        if dtype is not None:
            raise UserError("dtype is for GGUF files.", where=path, hint="Name the file *.gguf, or leave it.")
        with replacing_model(path) as folder:
            self.write_files(folder)
        return path

    def resize(
        self, vocab_size: int | None = None, *, initialize: str | Mapping[int, Sequence[int]] = "mean"
    ) -> LM:
        """Give the model a vocabulary of another size, after tokens were added to the tokenizer for instance.

        The rows that embedding and head have stay; new ones begin as `initialize` says.

        Args:
            vocab_size: So many rows; None: as many as the tokenizer needs, or as there are if they are more.
            initialize: "mean": as the mean of all rows, under which the old tokens keep nearly all of their
                probability; "subtokens": as the mean of the older tokens that spell the token's text, where it has
                such; "random": drawn about the mean, with the variance of the rows. Or by id the older ids whose mean a
                row becomes; other new rows are the mean of all.

        Returns:
            This model.

        Raises:
            UserError: The tokenizer needs more rows, there is no such initialization or id, or embedding or head were
                wrapped.
            RunError: A run trains this model.

        Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
        """
        from nbllm.models.vocabulary import check_initialization, num_ids, resize_vocabulary, subtokens

        needed = num_ids(self.tokenizer)
        rows = self.config.vocab_size
        if vocab_size is None:
            vocab_size = max(needed, rows)
        if type(vocab_size) is not int or vocab_size < max(needed, 1):
            raise UserError(
                f"vocab_size must be a whole number, at least {needed}: the tokenizer has so many tokens; "
                f"not {vocab_size!r}."
            )
        check_initialization(initialize, rows, vocab_size)
        self.refuse_while_trained()
        by_id = {} if isinstance(initialize, str) else initialize
        if initialize == "subtokens":
            by_id = subtokens(self.tokenizer, rows)
        with self.lock:
            if vocab_size != rows or by_id:
                self.release()
                kind = initialize if isinstance(initialize, str) else "mean"
                resize_vocabulary(self.model, vocab_size, initialize=kind, parts=by_id)
                self._resized = True
        return self

    def refuse_resizing_while(self, check: Callable[[], None]) -> None:
        """Let `check` raise in `resize` while somebody, such as a run, depends on the model's shape."""
        self._check_untrained = check

    def write_files(self, folder: Path, *, weights: bool = True, adapter_weights: bool = True) -> None:
        """Write the files of `save` into an existing folder, as part of a checkpoint for instance.

        Args:
            folder: The folder.
            weights: Whether the model's own weights are among them.
            adapter_weights: Whether those of adapters that are on are; their settings are in any case.
        """
        from nbllm.inference.recommended import generation_config
        from nbllm.models.loading import save_model
        from nbllm.models.peft.checkpoint import write_adapters
        from nbllm.models.vocabulary import check_vocabulary

        check_utf8(folder)
        check_vocabulary(self.tokenizer, self.config.vocab_size)
        ids: dict[str, Any] = {name: getattr(self.tokenizer, name, None) for name in _SPECIAL_IDS}
        if len(self.end_tokens) > 1:
            ids["eos_token_id"] = list(self.end_tokens)
        if (decoder_tokens := self.decoder_tokens) is not None:
            ids |= dataclasses.asdict(decoder_tokens)
        with self.lock:
            save_model(
                self.model,
                folder,
                token_ids=ids,
                generation=generation_config(self.sampling),
                weights=weights,
            )
            on = [adapter for adapter in self.adapters if adapter.state == "on"]
            if on:
                write_adapters(on, folder, parameters=adapter_weights)
        self.tokenizer.save_pretrained(str(folder))

    @overload
    def generate(
        self, prompt: str, *, stream: bool | Callable[[StreamedText], object] = False, **sampling: Any
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: list[str], *, stream: bool | Callable[[StreamedText], object] = False, **sampling: Any
    ) -> Generations: ...

    @takes(settings_of(SamplingConfig), SamplingConfig)
    def generate(
        self,
        prompt: str | list[str] = "",
        *,
        stream: bool | Callable[[StreamedText], object] = False,
        **sampling: Any,
    ) -> Generation | Generations:
        """Continue a text, or several at once; with an encoder-decoder, write another text that follows from it.

        Args:
            prompt: The beginning, or what the encoder reads; a list makes a batch, each text continued as it would be
                alone.
            stream: True prints text as it comes; a function is given each piece.
            **sampling: Settings of `SamplingConfig`: temperature, top_k, top_p, max_new_tokens, seed, num_beams, ...

        Returns:
            The continuation without the prompt, a `str` that also tells how it came about; of a list, or where
            `num_return_sequences` asks for several, a list.
            Interrupting returns what there is. Its `stopped_by` says why a text ended; where that is the context, or
            `max_new_tokens` without having been set, it is said once.

        Raises:
            UserError: An unknown setting, a value out of range, settings that exclude each other, or a prompt that the
                context cannot hold.
        """
        from nbllm.inference.recommended import recommended_search
        from nbllm.inference.text import generate

        search = {} if stream else recommended_search(self.sampling, sampling)
        config = SamplingConfig.from_dict({**search, **sampling})
        made = generate(
            self.generative_network(),
            self.tokenizer,
            prompt,
            stream=stream,
            config=config,
            lock=self.lock,
            end_ids=self.end_tokens,
            decoder_tokens=self.decoder_tokens,
        )
        for each in made if isinstance(made, list) else [made]:
            self._tell_ending(each, sampling)
        return made

    @takes(CHAT_SETTINGS, SamplingConfig)
    def chat(self, messages: str | Sequence[Mapping[str, Any]], **sampling: Any) -> ChatStream:
        """Answer a conversation; the answer streams.

        `for piece in lm.chat(...)` reads it as it comes, a cell that ends with it shows it grow, and `.text`,
        `.message` and `.result` wait for its end.

        Args:
            messages: A text of the user, or messages as OpenAI's interface has them: each with a "role" ("system",
                "user" or "assistant") and a "content", a text or parts of type "text". The last is the user's, or the
                beginning of an answer for the model to continue. They are rendered by the tokenizer's chat template;
                where it has none, as "User: ..." and "Assistant: ...".
            **sampling: Settings of `SamplingConfig`. Unless given, `max_new_tokens` is 512 and all else is as the
                model's makers recommend (`LM.sampling`), or else as `nbllm.inference.chat.CAUTIOUS` has it.

        Raises:
            UserError: The messages are no conversation, the template cannot render them, or a setting is unknown
                or out of range.
        """
        from nbllm.inference.chat import answer, chat_config
        from nbllm.inference.chat_prompt import render_chat
        from nbllm.inference.chat_stream import ChatStream
        from nbllm.inference.runners.compiled import load_kernel

        model = self.causal_network_for("generate")
        load_kernel(model)  # while the cell can say so: an answer is written in a thread of its own
        config = chat_config(sampling, self.sampling)
        prompt = render_chat(self.tokenizer, messages, end_tokens=self.end_tokens)

        def write(receive: Callable[[StreamedText], object], should_stop: Callable[[], bool]) -> Generation:
            made = answer(
                model, self.tokenizer, prompt, config, on_text=receive, should_stop=should_stop,
                lock=self.lock,
            )  # fmt: skip
            self._tell_ending(made, sampling)
            return made

        return ChatStream(prompt, write)

    def _tell_ending(self, made: Generation, sampling: Mapping[str, Any]) -> None:
        """Say, once for this model, that a text was cut off where a person may not expect it."""
        from nbllm.core.terminal import say
        from nbllm.inference.generation import ending_note

        note = ending_note(made, length_was_chosen="max_new_tokens" in sampling)
        if note is not None and made.stopped_by not in self._endings_told:
            self._endings_told.add(made.stopped_by)
            say(note, error=True)

    def score(self, texts: str | Sequence[str]) -> list[Score]:
        """Return how probable the model finds each text.

        A text's first token is predicted from what documents begin with (`document_start`); where there is no such
        token, it is not counted. Texts longer than the context are read in windows that overlap by half. A text is
        encoded as in training: a control token that it spells is plain text.
        """
        from nbllm.data.document_bounds import document_bounds
        from nbllm.data.encoding import encode_text

        texts = [texts] if isinstance(texts, str) else list(texts)
        start = document_bounds(self.tokenizer).start_tokens
        ids = [start + encode_text(self.tokenizer, text) for text in texts]
        return [
            Score(float(values.double().sum()), len(values), len(text.encode()))
            for text, values in zip(texts, self.score_tokens(ids), strict=True)
        ]

    def score_tokens(
        self, sequences: Sequence[Sequence[int]], *, stride: int | None = None, batch_tokens: int = 4096
    ) -> list[torch.Tensor]:
        """Return how probable the model finds each token of each sequence, but its first, given those before it.

        Args:
            sequences: Token ids. One longer than the context is read in overlapping windows.
            stride: By how many tokens the window moves on; `None` is half the context.
            batch_tokens: About how many tokens one forward pass takes; bounds memory, changes no result.

        Returns:
            Per sequence (token - 1) natural logarithms in float32, on the CPU.
        """
        from nbllm.models.scoring import token_log_probabilities

        with self.lock:
            return token_log_probabilities(
                self.causal_network_for("score"), sequences, stride=stride, max_batch_tokens=batch_tokens
            )

    def reward(
        self, texts: str | Sequence[Mapping[str, Any]] | Sequence[str | Sequence[Mapping[str, Any]]]
    ) -> list[float]:
        """Return the score that a reward model gives each text.

        A text is encoded as in training, from the token that documents begin with to the one that they end with; a
        conversation as the chat template renders it. Of what is longer than the context only the beginning is read,
        with a warning.

        Args:
            texts: Texts, prompt and answer together, or conversations that end with the answer; a single one makes a
                list of one score.

        Raises:
            UserError: The model has no score head, or the template cannot render a conversation.
        """
        from nbllm.inference.reward import encode_whole, score_whole
        from nbllm.models.network import check_can

        check_can(self.model, "reward")
        is_single = isinstance(texts, str) or (bool(texts) and isinstance(texts[0], Mapping))
        many = cast("Sequence[str | Sequence[Mapping[str, Any]]]", [texts] if is_single else texts)
        both_directions = self.config.network == "encoder"
        ids = [encode_whole(self.tokenizer, text, both_directions=both_directions) for text in many]
        most = self.config.max_positions
        if long := sum(len(each) > most for each in ids):
            text = (
                f"{long} of {len(ids)} texts are longer than {most} tokens; only their beginnings are read."
            )
            warnings.warn(text, stacklevel=2)
        with self.lock:
            found: list[float] = score_whole(self.model, [each[:most] for each in ids]).tolist()
        return found

    def embed(
        self, texts: str | Sequence[str], *, pooling: str = "mean", normalize: bool = True
    ) -> torch.Tensor:
        """Return a vector for each text.

        A text is encoded as in training, a control token that it spells being plain text, between the tokens that the
        tokenizer puts around a text ([CLS] and [SEP]), which are pooled too. Of a text longer than the context only
        the beginning is read, with a warning.

        Args:
            texts: The texts; a single one makes one row.
            pooling: "mean" of the hidden states of all tokens, the first token's ("cls"), or the "last" one's.
            normalize: Whether each vector is divided by its Euclidean norm, so that a matrix multiplication of two
                results gives cosine similarities.

        Returns:
            (text, hidden), float32, on the CPU.

        Raises:
            UserError: The model cannot embed, there is no such pooling, it makes no sense for the model, or a text has
                no token.

        Source: Reimers and Gurevych 2019, arXiv:1908.10084, section 3.
        """
        from nbllm.data.encoding import added_around, encode_text
        from nbllm.models.embedding import embed_tokens

        texts = [texts] if isinstance(texts, str) else list(texts)
        before, after = added_around(self.tokenizer)
        most = self.model.context_length - len(before) - len(after)
        ids = [encode_text(self.tokenizer, text) for text in texts]
        for number, tokens in enumerate(ids):
            if not (before or tokens or after):
                raise UserError(f"A text has no token: {texts[number]!r}.", where=f"text {number}")
        if long := sum(len(text) > most for text in ids):
            text = (
                f"{long} of {len(ids)} texts are longer than {most} tokens; only their beginnings are read."
            )
            warnings.warn(text, stacklevel=2)
        with self.lock:
            return embed_tokens(
                self.model,
                [before + text[:most] + after for text in ids],
                pooling=pooling,
                normalize=normalize,
            )

    def fill(self, text: str, *, top: int = 5) -> Fill:
        """Return the likeliest tokens in the place of each mask of a text, as "The capital of [MASK] is Paris.".

        Args:
            text: It holds the tokenizer's mask token (`lm.tokenizer.mask_token`) at least once; other control tokens
                that it spells are plain text.
            top: How many tokens for each mask.

        Raises:
            UserError: The model cannot fill masks, the tokenizer has no mask token, the text has none or is longer
                than the context, or `top` is no number of tokens.
        """
        from nbllm.inference.filling import fill_masks

        with self.lock:
            return fill_masks(self.model, self.tokenizer, text, top)

    @property
    def document_start(self) -> str:
        """The token that documents begin with, from which scores and texts without a prompt start; "" for none.

        It is the tokenizer's beginning-of-text token, or else what separated documents in the model's training, as far
        as that is known (`nbllm.data.document_bounds`). Assign another, as in `lm.document_start = "<|endoftext|>"`;
        it is saved with the tokenizer (not in a GGUF file).

        Raises:
            UserError: The token that is assigned is not in the vocabulary.
        """
        from nbllm.data.document_bounds import document_bounds

        return document_bounds(self.tokenizer).start_token

    @document_start.setter
    def document_start(self, token: str | None) -> None:
        from nbllm.data.document_bounds import name_document_start

        name_document_start(self.tokenizer, token)

    def release(self) -> int:
        """Free the memory that is kept for the next generation; that one allocates it again.

        `generate`, `chat` and the samples of a training run share it: a workspace and the cache of keys and values. The
        weights are read where they are and never copied.

        Returns:
            How many bytes were freed.
        """
        from nbllm.inference.workspace import release

        return release(self.model)

    def __repr__(self) -> str:
        config = self.config
        active = f", {_count(self.model.num_active_parameters)} active" if config.num_experts else ""
        heads = "" if config.network == "rwkv" else f"{config.num_heads} heads, "
        return (
            f"LM({config.family}, {config.num_layers} layers x {config.hidden_size}, "
            f"{heads}vocabulary {config.vocab_size}, context {config.max_positions}, "
            f"{_count(self.num_parameters)} parameters{active})"
        )

    def _repr_html_(self) -> str:
        from nbllm.core.html import escape, fragment, table
        from nbllm.inference.workspace import held_bytes

        rows = [
            (row.part, row.what, row.shape, row.parameters, round(row.num_bytes / 1e6, 2))
            for row in self.model.describe()
        ]
        total = self.model.num_bytes
        rows.append(
            (
                "total",
                f"{self.model.dtype} on {self.model.device}",
                "",
                self.num_parameters,
                round(total / 1e6, 2),
            )
        )
        held = held_bytes(self.model)
        kept = [("kept for the next answer", "release() gives it back", "", "", round(held / 1e6, 2))]
        header = ("part", "what", "matrices", "parameters", "memory (MB)")
        shown = table([*rows, *(kept if held else [])], header)
        return fragment(f"<p><strong>{escape(repr(self))}</strong></p>{shown}")


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
