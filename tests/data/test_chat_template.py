"""Chat templates: what transformers renders, by a process that can be killed."""

import os
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import chat_template, load, pack, train_tokenizer
from nbllm.data.chat_template import encode_conversation, render

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief.  "},
    {"role": "user", "content": "naïve <|im_end|> <|endoftext|>", "name": "Zoë"},
    {"role": "assistant", "content": "Hello "},
]
HOURS = {
    "a number": "{{ 10**(10**9) }}",
    "a number of the messages": "{{ 10**(10**(messages|length + 8)) }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a macro": "{% macro m(n) %}{% for i in range(9) %}{{ m(n - 1) if n }}{% endfor %}{% endmacro %}{{ m(99) }}",
}
GIGABYTES = {
    "text": "{{ 'a' * (10**11) }}",
    "doubling": "{% set ns = namespace(x='a' * 1000) %}"
    "{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "padding": "{{ '%0999999999999d' % 1 }}",
    "a list": "{{ range(99999)|list * 99999 }}",
}


@pytest.fixture(scope="module", autouse=True)
def no_process_of_other_tests():
    chat_template._close_all()


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(["the cat sat on the mat"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def with_template(tokenizer, template, **options):
    return render(tokenizer, CHAT[:2], template=template, **options)


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}, {"continue_final_message": True}])
@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} {{ m.name }}{{ eos_token }}"
        "{% endfor %}",
        "{% for m in messages %}{{ m | tojson }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    ],
)
def test_the_tokens_are_those_of_transformers(tokenizer, template, options):
    expected = tokenizer.apply_chat_template(
        CHAT, chat_template=template, sanitize_control_tokens=True, return_dict=False, **options
    )
    assert encode_conversation(tokenizer, CHAT, template=template, **options) == expected


def test_control_tokens_that_are_not_special_follow_the_same_rule(tokenizer):
    other = train_tokenizer(["the cat"], 300)
    other.add_tokens(["<turn>", "<other>"])
    template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"
    chat = [{"role": "user", "content": "a <turn> <other>"}]
    expected = other.apply_chat_template(
        chat, chat_template=template, sanitize_control_tokens=True, return_dict=False
    )
    assert encode_conversation(other, chat, template=template) == expected
    assert expected.count(other.convert_tokens_to_ids("<turn>")) == 1


def test_a_process_can_be_started_before_it_is_needed(tokenizer):
    chat_template.prepare()
    workers = list(chat_template._idle)
    chat_template.prepare()
    assert chat_template._idle == workers and len(workers) == 1
    assert "Be brief." in render(tokenizer, CHAT)
    assert chat_template._idle == workers


def test_one_process_renders_them_all(tokenizer):
    render(tokenizer, CHAT)
    workers = list(chat_template._idle)
    assert len(workers) == 1
    for _ in range(3):
        render(tokenizer, CHAT)
    assert chat_template._idle == workers
    workers[0]._process.kill()  # as a system does that is short of memory
    workers[0]._process.wait()
    assert "Be brief." in render(tokenizer, CHAT)


def test_conversations_may_be_rendered_at_the_same_time(tokenizer):
    chats = [[{"role": "user", "content": f"number {number}"}] for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda chat: render(tokenizer, chat), chats))
    assert texts == [f"<|im_start|>user\nnumber {number}<|im_end|>\n" for number in range(12)]
    assert 1 <= len(chat_template._idle) <= chat_template.MOST_IDLE
    chat_template._close_all()


@pytest.mark.parametrize("template", HOURS.values(), ids=HOURS)
def test_a_template_that_takes_hours_is_ended(tokenizer, template, monkeypatch):
    render(tokenizer, CHAT)  # the process is there
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    with pytest.raises(UserError, match="more than 0.3 seconds|MemoryError|RecursionError"):
        with_template(tokenizer, template)
    monkeypatch.undo()
    assert "Be brief." in render(tokenizer, CHAT)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is limited where the system can")
@pytest.mark.parametrize("template", GIGABYTES.values(), ids=GIGABYTES)
def test_a_template_that_takes_gigabytes_is_an_error(tokenizer, template):
    with pytest.raises(UserError, match="MemoryError|OverflowError|too much memory"):
        with_template(tokenizer, template)


def test_a_text_out_of_all_proportion_is_refused_before_it_is_encoded(tokenizer):
    with pytest.raises(UserError, match="it makes 20,000,000 characters of it"):
        with_template(tokenizer, "{{ 'a' * 20000000 }}")
    long = [{"role": "user", "content": "a" * 2_000_000}]
    assert len(render(tokenizer, long)) > 2_000_000


def test_its_caller_can_end_it(tokenizer):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(CancelledError):
        with_template(tokenizer, HOURS["loops"], should_stop=stop.is_set)


def test_an_interrupt_ends_it_and_the_next_request_gets_its_own_answer(tokenizer, monkeypatch):
    render(tokenizer, CHAT)
    (worker,) = chat_template._idle

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_template._Worker, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render(tokenizer, CHAT[:1])
    assert worker._process.poll() is not None
    monkeypatch.undo()
    assert "naïve" in render(tokenizer, CHAT)


FILE = "{% include '/etc/passwd' %}"


@pytest.mark.parametrize(
    "template",
    [
        FILE,
        FILE.replace("include", "extends"),
        "{% import 'os' as os %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append({}) }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "(" * 5000 + "{{" + "(" * 5000,
    ],
)
def test_no_template_reads_files_or_imports(tokenizer, template):
    with pytest.raises(UserError, match="chat template cannot render this conversation"):
        with_template(tokenizer, template)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="files are limited where the system can")
def test_its_process_opens_no_file(tokenizer):
    render(tokenizer, CHAT)
    (worker,) = chat_template._idle
    import psutil

    limits = psutil.Process(worker._process.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert limits == (3, 3)


def test_a_conversation_that_is_packed_is_rendered_so_too(tokenizer, monkeypatch):
    from copy import deepcopy

    hostile = deepcopy(tokenizer)
    hostile.chat_template = HOURS["loops"]
    render(tokenizer, CHAT)
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    with pytest.raises(DataError, match="more than 0.3 seconds"):
        pack(load([{"messages": CHAT}]), hostile)
