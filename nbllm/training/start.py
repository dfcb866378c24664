"""`nb.train` and `nb.attach`: a run is a directory; these make one, or open one."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError
from nbllm.core.io import expand_user
from nbllm.core.signature import InWords, setting, settings_of, takes
from nbllm.data.loader import make_source
from nbllm.data.provenance import source_of
from nbllm.data.sample_store import SampleStore
from nbllm.data.token_store import TokenStore
from nbllm.distributed.launch import Launch
from nbllm.distributed.offload import check_device, check_space
from nbllm.distributed.plan import Plan
from nbllm.distributed.slurm import SlurmJob
from nbllm.lm import LM
from nbllm.objectives import OBJECTIVES
from nbllm.runs import checkpoint as checkpoints, managing
from nbllm.runs.locating import FOLDER, locate
from nbllm.runs.run import Run
from nbllm.runs.store import check_name, create
from nbllm.training.arguments import our_names
from nbllm.training.config import TrainConfig
from nbllm.training.fork import first_checkpoint, new_record, say_if_renamed
from nbllm.training.freezing import ParameterNames
from nbllm.training.kernel_code import check_travels
from nbllm.training.launcher import Launcher, refuse_while_trained
from nbllm.training.objective import make_objective
from nbllm.training.optimizers import OPTIMIZERS
from nbllm.training.optimizers.base import state_bytes
from nbllm.training.place import placed, processes_of, processes_of_a_machine
from nbllm.training.precision import choose_device
from nbllm.training.requirements import check_fits, check_network, longest_sequence
from nbllm.training.run_choices import make_choices
from nbllm.training.train_state import TrainState, only_adapters_are_trained, write_base, write_lm
from nbllm.training.validation import limits

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

MOST_EPOCHS = 1_000_000
BATCH_TOKENS = 2048  # in a batch whose size is not given
SHORTEST = 32  # tokens in a sequence, unless a shorter one is asked for


@takes(
    [
        *settings_of(
            TrainConfig,
            without=("optimizer_settings", "objective_settings"),
            batch_size=InWords(f"at most 8, and {BATCH_TOKENS} tokens"),
            sequence_length=InWords("the model's, at most 1024"),
        ),
        *(setting(each.name, each.default, "float") for each in OPTIMIZERS[TrainConfig.optimizer].settings),
    ],
    TrainConfig,
)
def train(  # noqa: PLR0913 (what a run is, each one thing)
    lm: LM,
    data: Dataset | DatasetDict | tuple[Any, Any] | TokenStore | str | Path | Iterable[Any],
    *,
    validation: float | Dataset | TokenStore | str | Path | Iterable[Any] | None = None,
    name: str | None = None,
    folder: str | Path = FOLDER,
    where: str | Launch | SlurmJob = "thread",
    plan: Plan | None = None,
    replace: bool = False,
    epochs: float | None = None,
    **config: Any,
) -> Run:
    """Start training a model on text, and return a handle on the run at once.

    Args:
        lm: The model; of one with an adapter that is on, that alone is trained, and a score head, unless `freeze` is
            given. A thread's
            run gives it the new weights at each checkpoint and at the end; a process's run leaves it as it is:
            `nb.load(run)`.
        data: Documents with a `text` column, or anything else that `nb.data.load` takes, such as the name of a file; a
            pair of such (training, validation); a `DatasetDict` with `train` and perhaps `validation`; or a packed
            `TokenStore`.
        validation: Held-out text, measured at intervals: of the same kinds; or the share of `data` to hold out, such as
            0.1, by document (`nb.data.split`); a single document is split by position.
        name: The run's name; made from the family and the time when not given.
        folder: Where runs are kept.
        where: "thread" (of this process), "process" (which goes on when this one ends), or `nb.Launch(processes=2)`:
            several of these, each with its own share of every step. A script that ends waits for
            the runs of its threads, and Ctrl-C then stops them; a kernel that is shut down stops them. Stopped runs
            have a checkpoint, and `resume` goes on.
        plan: How the model lies over these processes, `nb.Plan(zero=3)` for instance; each has all of it and its own
            sequences when not given.
        replace: Whether a run of that name that has ended is deleted, with its checkpoints, once the new one is ready
            to start; without, the new one is given the next free name, such as "name-2".
        epochs: How many times to train on the text, instead of `steps`; recorded as steps.
        config: Fields of `TrainConfig`; among them `rules=[nb.rules.spike(), ...]`, what the run does by itself. Names
            of other libraries are taken where they mean the same: `learning_rate`, `max_steps`, `num_train_epochs`.

    Raises:
        UserError: A setting is unknown or out of range, or the text is too short.
        RunError: A run of this kernel is training the model, the run to replace is live, or the folder cannot be
            written.
    """
    if not isinstance(lm, LM):
        raise UserError(
            f"The first argument must be a model, not {type(lm).__name__}.", hint="nb.train(lm, data)"
        )
    folder = expand_user(folder)
    refuse_while_trained(lm)
    given = our_names(config if epochs is None else {"epochs": epochs, **config})
    epochs = _checked_epochs(given)
    settings = TrainConfig.from_dict(given)
    place = placed(where)
    check_travels(settings, place)
    plan = Plan() if plan is None else plan
    sized = plan.sized(processes_of(place))
    if plan.precision is not None:
        settings = settings.replace(precision=plan.precision)
    sized.check(lm.config, settings)
    check_network(settings, lm.model)  # before the text is read
    if replace:
        if name is None:
            raise UserError(
                "replace=True needs the name of the run to replace.", hint='nb.train(..., name="demo")'
            )
        managing.check_replaceable(folder / check_name(name))
    text, held_out_text = _parts(data, validation, settings.seed)
    training = _store(lm, text)
    held_out = None if held_out_text is None else _store(lm, held_out_text)
    settings = _sized(settings, given, lm, training)
    on = [adapter for adapter in lm.adapters if adapter.state == "on"]
    if on and (sized.num_shards > 1 or sized.model_ranks > 1):
        raise UserError(
            "An adapter is trained by data ranks that each hold all of the model.",
            where="plan",
            hint="Leave zero, tensor, pipeline and context out: what an adapter trains takes little memory.",
        )
    if on and "freeze" not in given:
        trained = [each.freeze_pattern for each in on if each.trains]
        settings = settings.replace(freeze=(*trained, *(["!score"] if lm.config.score_head else [])))
    beside = [name for each in on for name in each.parameters()]
    shape = lm.config.replace(max_positions=lm.model.context_length)
    check_fits(settings, shape, lm.tokenizer, training, held_out, adapter=beside)
    settings = _counted(settings, epochs, lm, training, sized)
    check_device(sized, choose_device(settings.device))
    if sized.offload == "disk":
        folder.mkdir(parents=True, exist_ok=True)
        elements = sum(parameter.numel() for parameter in lm.model.parameters())
        check_space(folder, elements, settings.precision, state_bytes(OPTIMIZERS[settings.optimizer]))
    held = None if held_out is None else _describe(held_out, held_out_text)
    path = create(
        folder,
        name or f"{lm.config.family}-{time.strftime('%m%d-%H%M%S')}",
        _record(lm, settings, {"train": _describe(training, text), "validation": held}, place, plan),
    )
    state = TrainState(values=settings.values, frozen=settings.freeze, data_size=sized.data or 1)
    with first_checkpoint(path):
        names = ParameterNames((name for name, _ in lm.model.named_parameters()), lm.config)
        is_shared = only_adapters_are_trained(lm, names.frozen(settings.freeze))
        base = write_base(path, lm) if is_shared else None
        checkpoints.save(path, 0, lambda folder: write_lm(folder, lm, base), state.to_dict())
    if replace and name is not None:
        path = managing.replace(path, name)
    say_if_renamed(name, path)
    return Launcher(lm).start(path)


def attach(
    run: Run | str | Path,
    *,
    actor: str = "person",
    where: str | Launch | SlurmJob | None = None,
    plan: Plan | None = None,
) -> Run:
    """Open any run, live or ended, of this kernel or another.

    Args:
        run: Its name in `runs/`, its folder, or another handle of it.
        actor: Who acts through this handle: "person", "rule:<name>" or "agent:<name>".
        where: Where `resume` and `fork` of this handle execute; `None` is where the run did. A step has the same
            sequences on however many processes.
        plan: How the model lies over these processes; `None` is as it did, with more or fewer data ranks.

    Raises:
        RunError: There is no such run; the nearest name is given.
    """
    return Run(locate(run), actor=actor, launcher=Launcher(where=where, plan=plan))


def _parts(data: Any, validation: Any, seed: int) -> tuple[Any, Any]:
    """Return the training text and the held-out text, or `None`, as they were given."""
    from nbllm.data.splitting import split

    parts: tuple[Any, ...] = (data,)
    if isinstance(data, tuple):
        parts = data
    elif isinstance(data, Mapping):
        if "train" not in data:
            raise DataError(f"There is no split 'train' among {', '.join(map(repr, data))}.")
        parts = (data["train"], data["validation"]) if "validation" in data else (data["train"],)
    if len(parts) > 2:
        raise DataError(f"data holds {len(parts)} parts; it must be (training, validation).")
    if len(parts) == 2:
        if validation is not None:
            raise DataError("Held-out text is given twice: in data, and as validation.")
        validation = parts[1]
    elif isinstance(validation, float | int):
        if isinstance(data, TokenStore):
            raise DataError(
                "What is packed cannot be split any more.", hint="Split the text: nb.data.split(text, 0.1)."
            )
        parts = split(parts[0], validation, seed=seed)
        validation = parts[1]
    return parts[0], validation


def _checked_epochs(given: dict[str, Any]) -> float | None:
    """Take `epochs` out of the settings, and check it."""
    epochs = given.pop("epochs", None)
    if epochs is None:
        return None
    if "steps" in given:
        raise UserError("epochs and steps are both given.", hint="Give one of them.")
    if isinstance(epochs, bool) or not isinstance(epochs, (int, float)) or not 0 < epochs <= MOST_EPOCHS:
        raise UserError(f"epochs must be a number above 0 and at most {MOST_EPOCHS:,}, not {epochs!r}.")
    return float(epochs)


def _counted(
    settings: TrainConfig, epochs: float | None, lm: LM, training: TokenStore | SampleStore, plan: Plan
) -> TrainConfig:
    """Return the settings with epochs as steps, and with the steps of warm-up, which more steps must not stretch."""
    if epochs is not None:
        settings = settings.replace(steps=_steps(epochs, settings, lm, training, plan))
    return settings.replace(warmup_steps=settings.warmup)


def _steps(
    epochs: float, settings: TrainConfig, lm: LM, training: TokenStore | SampleStore, plan: Plan
) -> int:
    """Return the optimizer steps in which each token of the text is trained on about `epochs` times; say so."""
    objective = make_objective(settings, lm.tokenizer)
    length = objective.window_length(settings.sequence_length)
    windows = make_source(training, length=length, overlap=objective.overlap).windows_per_epoch
    in_a_step = settings.batch_size * settings.accumulation * (plan.data or 1)
    steps = max(1, math.ceil(epochs * windows / in_a_step))
    sys.stdout.write(
        f"epochs={epochs:g} are {steps:,} steps of {in_a_step} x {settings.sequence_length} tokens.\n"
    )
    return steps


def _sized(
    settings: TrainConfig, given: Mapping[str, Any], lm: LM, training: TokenStore | SampleStore
) -> TrainConfig:
    """Return the settings with length and number of sequences where they were not given; say so if they are bounded.

    Sequences are as long as the model's positions, up to the default length, and shorter where a short text would fill
    no batch. A batch of long sequences has fewer: activations take memory for each token, on a small machine too much
    for eight times 1,024 in a model of 135 million parameters (9 GB).
    """
    objective = make_objective(settings, lm.tokenizer)
    positions, length, batch_size = lm.model.context_length, settings.sequence_length, settings.batch_size
    longest = longest_sequence(objective, lm.config.replace(max_positions=positions))
    if "sequence_length" not in given:
        length = min(length, longest, max(SHORTEST, training.num_tokens // batch_size))
    if "batch_size" not in given:
        batch_size = max(1, min(batch_size, BATCH_TOKENS // length))
    if "sequence_length" not in given and length < longest:
        sys.stdout.write(
            f"sequence_length={length}, batch_size={batch_size}; the model has {positions:,} positions.\n"
        )
    return settings.replace(sequence_length=length, batch_size=batch_size)


def _store(lm: LM, data: Any) -> TokenStore | SampleStore:
    from nbllm.data.packing import pack

    return data if isinstance(data, (TokenStore, SampleStore)) else pack(data, lm.tokenizer)


def _record(
    lm: LM,
    settings: TrainConfig,
    data: dict[str, dict[str, Any] | None],
    place: dict[str, Any],
    plan: Plan,
) -> dict[str, Any]:
    return new_record(
        config=settings.to_dict(),
        model=lm.config.to_dict(),
        loss_unit=OBJECTIVES[settings.objective].loss_unit,
        data=data,
        base=lm.origin,
        settings=[setting.to_dict() for setting in settings.settings],
        cannot=limits(data["validation"]),
        **place,
        plan=plan.to_dict(),
        **make_choices(settings, lm.config, processes=processes_of_a_machine(place)),
    )


def _describe(store: TokenStore | SampleStore, given: Any) -> dict[str, Any]:
    """Return what a run's record says of a text."""
    return {
        "source": source_of(given),
        "path": str(store.path.resolve()),
        "fingerprint": store.fingerprint,
        "num_documents": len(store),
        "num_tokens": store.num_tokens,
        "num_bytes": store.num_bytes,
        "sources": list(store.sources) if isinstance(store, SampleStore) else [],
    }
