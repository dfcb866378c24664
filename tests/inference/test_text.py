"""From prompt to text: what a person calls."""

import _thread
import copy
import json
import pickle
import re
import threading

import pytest
from tokenizers.processors import TemplateProcessing

from nbllm.core.errors import UserError
from nbllm.inference import Generation, Generations, SamplingConfig, generate, generate_ids
from nbllm.inference.streaming import TokenText
from nbllm.inference.text import encode_prompt

GREEDY = SamplingConfig(temperature=0, max_new_tokens=40)
SAMPLED = SamplingConfig(max_new_tokens=40, seed=3)
PROMPTS = ["the cat", "", "naïve café on the mat 日本", "the dog sat on"]


def test_the_text_is_what_the_tokens_decode_to(model, tokenizer):
    for config in (GREEDY, SAMPLED):
        for prompt in PROMPTS:
            made = generate(model, tokenizer, prompt, config=config)
            ids = tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id]
            expected = generate_ids(model, [ids], config, eos_id=tokenizer.eos_token_id)[0]
            assert made.tokens == expected
            assert made == tokenizer.decode(expected, skip_special_tokens=True)
            assert (made.prompt, made.stopped_by) == (prompt, "length" if len(expected) == 40 else "eos")


@pytest.mark.parametrize("config", [GREEDY, SAMPLED, SAMPLED.replace(stop=["e", "th"])])
def test_a_list_equals_one_by_one(model, tokenizer, config):
    alone = [generate(model, tokenizer, prompt, config=config) for prompt in PROMPTS]
    together = generate(model, tokenizer, PROMPTS, config=config)
    assert isinstance(together, Generations)
    assert together == alone
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert [each.stopped_by for each in together] == [each.stopped_by for each in alone]
    assert generate(model, tokenizer, [], config=config) == []


def test_a_stop_string_across_tokens_is_cut_off(gpt2, tokenizer):
    free = generate(gpt2, tokenizer, "the cat", config=SAMPLED)
    first, second = (tokenizer.decode([token]) for token in free.tokens[10:12])
    stop = first[-1:] + second[:1]
    assert len(stop) == 2 and stop == free[(at := free.index(stop)) : at + 2]
    made = generate(gpt2, tokenizer, "the cat", config=SAMPLED.replace(stop=["never", stop]))
    assert made == free[:at]
    assert (made.stopped_by, made.stop_string) == ("stop", stop)
    assert made.tokens == free.tokens[: len(made.tokens)]
    assert stop in tokenizer.decode(made.tokens) and stop not in tokenizer.decode(made.tokens[:-1])


def test_a_stop_string_that_is_a_special_token_ends_each_text_of_a_batch(gpt2, tokenizer):
    """EleutherAI/lm-evaluation-harness#2723. Its own text is never decoded."""
    marked = copy.deepcopy(tokenizer)
    free = generate(gpt2, tokenizer, PROMPTS, config=SAMPLED)
    stop = next(token for token in free[0].tokens[5:] if all(token in each.tokens[1:] for each in free))
    text = marked.convert_ids_to_tokens(stop)
    marked.add_special_tokens({"additional_special_tokens": [text]})
    assert marked.decode([stop], skip_special_tokens=True) == ""
    made, received = streamed(gpt2, marked, PROMPTS, SAMPLED.replace(stop=[text]))
    for index, (each, whole) in enumerate(zip(made, free, strict=True)):
        assert (each.stopped_by, each.stop_string) == ("stop", text)
        assert each.tokens == whole.tokens[: whole.tokens.index(stop) + 1]
        assert each == marked.decode(each.tokens, skip_special_tokens=True)
        assert "".join(piece for piece in received if piece.prompt_index == index) == each


def streamed(model, tokenizer, prompt, config):
    received = []
    made = generate(model, tokenizer, prompt, config=config, stream=received.append)
    return made, received


def test_a_stream_gives_the_text_in_whole_characters(model, tokenizer):
    made, received = streamed(model, tokenizer, "the cat", SAMPLED)
    assert "".join(received) == made
    assert len(received) > 5
    assert all(received)
    # Half a character shows as a replacement character: only bytes that can no longer become one may.
    final = tokenizer.decode(made.tokens)
    assert "".join(received).count("\ufffd") == final.count("\ufffd")


def test_a_stream_never_gives_out_a_stop_string_or_what_follows(gpt2, tokenizer):
    free = generate(gpt2, tokenizer, "the cat", config=SAMPLED)
    for at in range(0, len(free) - 3, 2):
        stop = free[at : at + 3]
        made, received = streamed(gpt2, tokenizer, "the cat", SAMPLED.replace(stop=stop))
        assert "".join(received) == made == free[: free.index(stop)]


def test_pieces_of_several_texts_carry_their_prompts_index(model, tokenizer):
    made, received = streamed(model, tokenizer, PROMPTS, SAMPLED)
    for index, text in enumerate(made):
        assert "".join(piece for piece in received if piece.prompt_index == index) == text
    order = [piece.prompt_index for piece in received]
    assert order != sorted(order), "pieces come as they are made, not one prompt after another"


def printable(text):
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def test_printing(model, tokenizer, capsys):
    made = generate(model, tokenizer, "the cat", config=SAMPLED, stream=True)
    assert capsys.readouterr().out == printable(made) + "\n"
    many = generate(model, tokenizer, PROMPTS, config=SAMPLED, stream=True)
    assert capsys.readouterr().out == "".join(printable(each) + "\n" for each in many)
    generate(model, tokenizer, PROMPTS, config=SAMPLED)
    assert capsys.readouterr().out == ""


class Interrupting:
    """A tokenizer that is interrupted, once, while it decodes for the nth time."""

    def __init__(self, tokenizer, after):
        self._tokenizer, self._left = tokenizer, after

    def __call__(self, *args, **more):
        return self._tokenizer(*args, **more)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def decode(self, *args, **more):
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return self._tokenizer.decode(*args, **more)


@pytest.mark.parametrize("after", [3, 4, 7, 16, 31])
def test_an_interrupt_at_any_moment_returns_the_text_so_far(gpt2, tokenizer, after, capsys):
    full = generate(gpt2, tokenizer, "the cat", config=SAMPLED)
    made = generate(gpt2, Interrupting(tokenizer, after), "the cat", config=SAMPLED, stream=True)
    assert made.stopped_by == "interrupt"
    assert 0 < len(made.tokens) < 40 and made.tokens == full.tokens[: len(made.tokens)]
    assert made == tokenizer.decode(made.tokens)
    assert capsys.readouterr().out == printable(made) + "\n"


def test_the_stop_button_ends_a_long_generation(gpt2, tokenizer):
    endless = GREEDY.replace(max_new_tokens=10**7, overflow="slide", batch_size=2)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    timer = threading.Timer(0.4, _thread.interrupt_main)
    timer.start()
    try:
        made = generate(gpt2, tokenizer, PROMPTS, config=endless)
    finally:
        timer.cancel()
    assert [each.stopped_by for each in made] == ["interrupt"] * 4
    assert len(made[0].tokens) > 3 and not made[3].tokens
    assert made[0] == tokenizer.decode(made[0].tokens)


def test_an_interrupt_inside_the_stream_returns_the_text_so_far(gpt2, tokenizer):
    received = []

    def receive(piece):
        received.append(piece)
        if len(received) == 4:
            raise KeyboardInterrupt

    made = generate(gpt2, tokenizer, PROMPTS[:2], config=SAMPLED, stream=receive)
    assert {each.stopped_by for each in made} == {"interrupt"}
    for index, text in enumerate(made):
        assert "".join(piece for piece in received if piece.prompt_index == index) == text


def test_an_interrupt_while_waiting_for_the_lock(gpt2, tokenizer):
    class Busy:
        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *_):
            raise AssertionError("never entered")

    made = generate(gpt2, tokenizer, "the cat", config=SAMPLED, lock=Busy())
    assert (made, made.tokens, made.stopped_by, made.tokens_per_second) == ("", [], "interrupt", 0.0)


def test_the_caller_can_stop_and_the_lock_is_held(gpt2, tokenizer):
    lock = threading.RLock()
    asked = []

    def should_stop():
        taken = []
        other = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
        other.start()
        other.join()
        asked.append(taken[0])
        return len(asked) > 3

    made = generate(gpt2, tokenizer, "the cat", config=SAMPLED, should_stop=should_stop, lock=lock)
    assert (made.stopped_by, len(made.tokens), asked) == ("caller", 3, [False] * 4)


def test_the_result_is_a_string_that_knows_more(gpt2, tokenizer):
    made = generate(gpt2, tokenizer, "the cat", config=SAMPLED)
    assert isinstance(made, Generation) and isinstance(made, str)
    assert made.text == made and type(made.text) is str
    assert json.loads(json.dumps(made)) == made
    assert made.tokens_per_second > 0 and made.seed == 3
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(other, Generation)
        assert other == made and vars(other) == vars(made)


def test_html_is_escaped():
    made = Generation(
        "<script>alert(1)</script>", prompt="<img src=x onerror=alert(2)>", tokens=[1], stopped_by="stop",
        stop_string="</pre><b>", seed=0, seconds=0.5,
    )  # fmt: skip
    html = made._repr_html_()
    assert "<script" not in html and "<img" not in html and html.count("</pre>") == 1
    assert "&lt;script&gt;" in html and "1 token, 2 a second" in html
    assert Generations([made, made])._repr_html_().count(html) == 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (3, "The prompt must be a text or a list of texts, not int."),
        (None, "not NoneType"),
        (["a", b"b"], "A prompt must be a text, not bytes.\n  where: prompt 1"),
        ("half \ud83d", "lone surrogate"),
        ("the " * 200, 'pass overflow="slide"'),
    ],
)
def test_bad_prompts(gpt2, tokenizer, prompt, message):
    with pytest.raises(UserError) as error:
        generate(gpt2, tokenizer, prompt, config=SAMPLED)
    assert message in str(error.value)


def test_an_empty_prompt_begins_where_documents_do(gpt2, tokenizer):
    made = generate(gpt2, tokenizer, "", config=GREEDY)
    assert (
        made.tokens
        == generate_ids(gpt2, [[tokenizer.bos_token_id]], GREEDY, eos_id=tokenizer.eos_token_id)[0]
    )
    other = copy.deepcopy(tokenizer)
    other.eos_token = None
    assert generate(gpt2, other, "", config=GREEDY).tokens[:3] == made.tokens[:3]
    other.bos_token = None
    with pytest.raises(UserError, match="The prompt is empty"):
        generate(gpt2, other, "", config=GREEDY)


def test_a_prompt_that_spells_the_beginning_of_text_has_it_once(gpt2, tokenizer):
    begun = copy.deepcopy(tokenizer)
    token = begun.bos_token
    begun.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, begun.bos_token_id)]
    )
    assert begun(token + "the cat")["input_ids"][:2] == [begun.bos_token_id] * 2
    assert encode_prompt(tokenizer, 2 * token) == [begun.bos_token_id] * 2  # as a person asks
    once, spelled = (generate(gpt2, begun, text, config=GREEDY) for text in ("the cat", token + "the cat"))
    assert once.tokens == spelled.tokens
    assert (
        once.tokens
        == generate_ids(gpt2, [begun("the cat")["input_ids"]], GREEDY, eos_id=begun.eos_token_id)[0]
    )


def test_a_tokenizer_of_another_model(make_model, tokenizer):
    with pytest.raises(UserError, match="vocabulary of 40"):
        generate(make_model(vocab_size=40), tokenizer, "the cat")


def test_decoding_text_costs_linear_time(tokenizer):
    """Each token is decoded in a short window, however long the text."""
    longest = 0

    class Counting:
        def decode(self, tokens, **more):
            nonlocal longest
            longest = max(longest, len(tokens))
            return tokenizer.decode(tokens, **more)

    text = TokenText(Counting())
    tokens = tokenizer("the cat sat 日本 " * 100)["input_ids"]
    assert "".join([*map(text.feed, tokens), text.finish()]) == "the cat sat 日本 " * 100
    assert longest <= 8


def test_importing_inference_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, nbllm.inference as i; i.SamplingConfig; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
