"""What completion, Shift+Tab and help show of functions that take settings by name."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest
from IPython.core.completer import IPCompleter, provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

import nbllm as nb
from nbllm.core.config import Config
from nbllm.core.signature import setting, settings_of, takes
from nbllm.evaluation.config import EvaluationConfig
from nbllm.training.external_loop import FollowConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape(Config):
    """A shape.

    Args:
        width: In metres.
        names: Of its corners.

    And so on.
    """

    width: float
    names: tuple[str, ...] = ()
    size: int = 3


def test_settings_stand_in_the_signature_and_the_help():
    @takes([*settings_of(Shape, without=("size",), names=("a",)), setting("depth", 0, "int")], Shape)
    def draw(where: str, *, depth: int = 1, **shape: object) -> None:
        """Draw it.

        Args:
            where: Somewhere.
        """

    assert str(inspect.signature(draw)) == (
        "(where: str, *, depth: int = 1, width: float, names: tuple[str, ...] = ('a',)) -> None"
    )
    assert draw.__doc__ == (
        "Draw it.\n\nArgs:\n    where: Somewhere."
        "\n\nSettings (`Shape`):\n    width: In metres.\n    names: Of its corners."
    )


FUNCTIONS = {
    "train": (nb.train, nb.TrainConfig),
    "follow": (nb.follow, FollowConfig),
    "evaluate": (nb.evaluate, EvaluationConfig),
    "generate": (nb.LM.generate, nb.SamplingConfig),
    "LM.chat": (nb.LM.chat, nb.SamplingConfig),
    "chat": (nb.chat, nb.SamplingConfig),
}


BEAMS = ("num_beams", "length_penalty", "early_stopping", "num_return_sequences")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_setting_is_shown_with_its_default_and_described(name):
    function, kind = FUNCTIONS[name]
    shown = inspect.signature(function).parameters
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in shown.values())
    fields = {
        f.name: f
        for f in dataclasses.fields(kind)
        if f.name not in ("optimizer_settings", "objective_settings")
    }
    if name in ("chat", "LM.chat"):  # an answer is streamed, which a search with beams cannot be
        fields = {each: fields[each] for each in fields if each not in BEAMS}
        assert not set(shown) & set(BEAMS)
    assert set(fields) <= set(shown)
    as_declared = {"chat": set(), "LM.chat": set()}.get(name, set(fields))
    for field in as_declared - {"sequence_length", "batch_size", "rules"}:
        assert shown[field].default == fields[field].default
    for field in fields:
        assert re.search(rf"^    {field}: ", function.__doc__, re.MULTILINE), field


def test_what_depends_on_the_model_is_said_in_words():
    assert "sequence_length: 'int' = <the model's, at most 1024>" in str(inspect.signature(nb.train))
    assert "temperature: 'float' = <as the model's makers recommend>" in str(inspect.signature(nb.chat))
    assert "max_new_tokens: 'int' = 512" in str(inspect.signature(nb.LM.chat))


def test_the_optimizers_and_the_tasks_own_settings_are_shown():
    assert {"beta1", "beta2", "eps", "weight_decay", "epochs"} <= set(inspect.signature(nb.train).parameters)
    assert "stride" in inspect.signature(nb.evaluate).parameters


@pytest.mark.parametrize("use_jedi", [True, False])
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("nb.train(lm, text, warm", "warmup_steps="),
        ("nb.train(lm, text, weight_d", "weight_decay="),
        ("nb.evaluate(lm, resam", "resamples="),
        ("nb.follow('mine', checkpoint_i", "checkpoint_interval="),
        ("nb.LM.generate(lm, 'a', temp", "temperature="),
        ("nb.chat(lm, max_n", "max_new_tokens="),
        ("nb.LM.new('llama', num_l", "num_layers="),
    ],
)
def test_tab_offers_them_in_a_notebook(typed, offered, use_jedi):
    shell = InteractiveShell.instance()
    completer = IPCompleter(shell=shell, namespace={"nb": nb}, use_jedi=use_jedi)
    with provisionalcompleter():
        completions = {completion.text for completion in completer.completions(typed, len(typed))}
    assert any(offered.endswith(text) or text == offered for text in completions), completions


def test_the_shape_of_a_new_model_is_shown_without_loading_torch_for_it():
    shown = inspect.signature(nb.LM.new)
    assert str(shown).startswith(
        "(family: 'str' = 'gpt2', *, tokenizer: 'PreTrainedTokenizerBase', seed: 'int' = 0, "
    )
    fields = {field.name for field in dataclasses.fields(nb.ModelConfig)} - {"family"}
    assert set(shown.parameters) == fields | {"family", "tokenizer", "seed"}
    assert str(shown.parameters["num_layers"]).endswith("= <the family's>")
    assert shown.return_annotation == "LM"
    code = "import sys, nbllm as nb; nb.LM.new, nb.LM.generate; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


MODULES = [name for name in dir(nb) if inspect.ismodule(getattr(nb, name))]


@pytest.mark.parametrize("name", MODULES)
def test_tab_after_a_package_shows_what_is_ours_alone(name):
    module = getattr(nb, name)
    shown = [each for each in dir(module) if not each.startswith("__")]
    assert shown == sorted(getattr(module, "__all__", shown))
    for each in shown:
        value = getattr(module, each)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.startswith("nbllm"), each
