"""A model behind a real HTTP server on this machine gives the figures that it gives in this process."""

import contextlib
import http.server
import json
import signal
import threading

import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.evaluation import Remote, endpoint, evaluate, reproduce
from nbllm.evaluation.endpoint import EndpointError
from nbllm.evaluation.preparing import Prepared
from nbllm.evaluation.requests import DocumentLikelihood, Generate, Likelihood
from nbllm.inference.config import SamplingConfig
from nbllm.lm import LM
from tests.evaluation.questions import HOSTILE, Choosing, questions

KEY = "sk-secret-of-this-test"
QUIET = {"progress": False, "reuse": False}
PROBLEMS = [{"question": f"{i} and {i} 日本?", "answer": f"{i} + {i}\n#### {2 * i}"} for i in range(5)]


class Server(http.server.ThreadingHTTPServer):
    """Answers as an OpenAI-compatible server does, from a model in this process.

    `fails` are statuses that the next requests get; `answers` replaces what an answer is by its path.
    """

    daemon_threads = True

    def __init__(self, lm):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lm, self.key, self.fails, self.answers, self.seen = lm, None, [], {}, []
        self.apis = {"/v1/completions", "/v1/chat/completions"}
        self.likelihoods, self.changes, self.texts = True, {}, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def respond(self, path, body):
        if path in self.answers:
            return self.answers[path]
        if "messages" in body:
            message = {"role": "assistant", "content": self.write(body["messages"][0]["content"], body)}
            return {"choices": [{"message": message, "finish_reason": "length"}]}
        if not body.get("echo"):
            return {"choices": [{"text": self.write(body["prompt"], body), "finish_reason": "length"}]}
        logprobs = self.echo(body["prompt"]) | self.changes if self.likelihoods else None
        text = self.texts.get(body["prompt"], body["prompt"])
        return {"choices": [{"text": text, "finish_reason": "length", "logprobs": logprobs}]}

    def write(self, prompt, body):
        settings = {"temperature": body["temperature"], "max_new_tokens": body["max_tokens"]}
        return str(self.lm.generate(prompt, stop=body.get("stop", ()), **settings))

    def echo(self, text):
        ids = self.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        with self.lm.lock, torch.no_grad():
            found = self.lm.model(torch.tensor([ids]))[0].double().log_softmax(-1)
        best = found.max(-1)
        return {
            "tokens": [self.lm.tokenizer.decode([each]) for each in ids],
            "token_logprobs": [None, *(float(found[i, each]) for i, each in enumerate(ids[1:]))],
            "top_logprobs": [None, *({self.lm.tokenizer.decode([int(best.indices[i])]): float(best.values[i])}
                                     for i in range(len(ids) - 1))],
        }  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.seen.append((self.path, body, self.headers.get("Authorization")))
        if server.fails:
            status = server.fails.pop(0)
            return self.send(status, {"error": {"message": f"status {status}; you sent {KEY}"}})
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return self.send(401, {"error": {"message": f"Incorrect API key: {KEY} {HOSTILE}"}})
        if self.path not in server.apis or body["model"] != "tiny":
            return self.send(404, {"error": {"message": f"The model {body['model']!r} is not served here."}})
        return self.send(200, server.respond(self.path, body))

    def send(self, status, answer):
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(tokenizer):
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 512}
    lm = LM.new("llama", tokenizer=tokenizer, seed=3, **shape)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter *= 3  # so that it is sure of something
    return lm


@pytest.fixture
def server(served, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.0)
    server = Server(served)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def remote(server):
    return Remote(server.url, model="tiny")


@pytest.fixture
def completing(server):
    """The same, not asked what it offers."""
    return Remote(server.url, model="tiny", api="completions")


def columns(report):
    return [dict(section.columns) for section in report.sections if hasattr(section, "columns")]


def values(report):
    return [(each.name, each.value) for each in report.measurements() if each.metric]


def texts(report):
    return json.dumps(report.to_dict(), default=str)


def test_what_is_written_is_what_the_model_writes_here(remote, served):
    here, there = (
        evaluate(each, "gsm8k", data={"gsm8k": PROBLEMS}, shots=0, max_new_tokens=12, **QUIET)
        for each in (served, remote)
    )
    (own,), (other,) = columns(here), columns(there)
    assert own["written"] == other["written"] and any(own["written"])
    assert values(here) == values(there)


def test_likelihoods_are_those_of_the_model_here(remote, served):
    asked = questions()
    for each in asked[::2]:
        each["question"] += " naïve 日本"  # tokens that are a part of a letter
    asked[1]["question"] += " "  # the space that joins belongs to the choice
    asked[1]["choices"] = [choice.strip() for choice in asked[1]["choices"]]
    here, there = (evaluate(each, Choosing(), data=asked, **QUIET) for each in (served, remote))
    assert columns(here) == columns(there)
    assert values(here) == values(there)
    assert 0 < dict(values(here))["accuracy"] < 1


def test_multiple_choice_has_the_same_log_probabilities(remote, served):
    tasks = ["arc_easy", "lambada"]
    here, there = (evaluate(each, tasks, limit=3, shots=0, **QUIET) for each in (served, remote))
    own, other = columns(here)[0], columns(there)[0]
    for one, two in zip(own["log_probabilities"], other["log_probabilities"], strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    for (name, one), (_, two) in zip(values(here), values(there), strict=True):
        assert one == pytest.approx(two, rel=1e-5), name


def test_log_probabilities_are_read_as_lm_eval_reads_them(server, completing, served):
    theirs = pytest.importorskip("lm_eval.models.openai_completions").LocalCompletionsAPI.parse_logprobs
    greedy = []
    for context in ("the cat sat", "naïve 日本", "def return if", "a mat and"):
        for continuation in (
            " on a mat",
            " 日 x",
            server.write(context, {"temperature": 0, "max_tokens": 1}),
        ):
            answer = server.respond("/v1/completions", {"prompt": context + continuation, "echo": True})
            for values in answer["choices"][0]["logprobs"].values():
                values.append(None)  # they ask for one token more, and leave it out
            answer["choices"][0]["index"] = 0
            (expected,) = theirs(answer, ctxlens=[len(served.tokenizer(context)["input_ids"])])
            (found,) = completing.answer(completing.prepare([Likelihood(context, continuation)]))
            assert (pytest.approx(found.log_probability), found.greedy) == expected
            greedy.append(found.greedy)
    assert len(set(greedy)) == 2


def test_the_report_names_endpoint_model_and_api_and_no_key(server, served, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_KEY", KEY)
    server.key = KEY
    remote = Remote(server.url, model="tiny", key_variable="SOME_KEY")
    report = evaluate(remote, Choosing(), **QUIET)
    assert report.title == f"The language model tiny at {server.url}"
    assert report.provenance[0].origin == f"tiny at {server.url} (completions)"
    assert f"|model:tiny at {server.url} (completions)|" in next(report.measurements()).signature
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert server.url in page and "/completions: each prompt as it is" in page
    assert KEY not in page + repr(report) + repr(remote) + repr(vars(remote)) + repr(vars(remote._endpoint))
    assert {authorization for *_, authorization in server.seen} == {f"Bearer {KEY}"}


def test_it_is_reproduced_and_a_server_is_never_chosen_by_the_report(remote, served):
    report = evaluate(remote, Choosing(), **QUIET)
    assert reproduce(report, progress=False).agrees
    again = reproduce(report, served, tasks=[Choosing()], progress=False)
    assert again.agrees and ("endpoint", report.provenance[0].origin, "") in again.changed
    report.inputs = None
    with pytest.raises(UserError, match="must be given again"):
        reproduce(report, tasks=[Choosing()], progress=False)


def test_models_here_and_there_are_compared(remote, served):
    report = evaluate({"here": served, "there": remote}, Choosing(), **QUIET)
    assert [each.values[0] - each.values[1] for s in report.sections if hasattr(s, "comparisons")
            for each in s.comparisons] == [0, 0]  # fmt: skip


def test_answers_are_kept_and_not_asked_for_again(remote, server):
    first = evaluate(remote, Choosing(), progress=False)
    count = len(server.seen)
    again = evaluate(Remote(server.url, model="tiny"), Choosing(), progress=False)
    assert values(first) == values(again)
    assert [body["prompt"] for _, body, _ in server.seen[count:]] == [
        "One two three",
        "One two",
    ]  # what it offers


def test_chat_is_used_where_there_are_no_completions(server, served):
    server.apis = {"/v1/chat/completions"}
    settings = {"data": {"gsm8k": PROBLEMS}, "shots": 0, "max_new_tokens": 12, **QUIET}
    remote = Remote(server.url, model="tiny")
    there = evaluate(remote, "gsm8k", **settings)
    assert columns(there)[0]["written"] == columns(evaluate(served, "gsm8k", **settings))[0]["written"]
    assert there.provenance[0].origin.endswith("(chat)")
    with pytest.raises(UserError, match="'choosing' cannot be measured") as caught:
        evaluate(remote, [Choosing(), "gsm8k"], **QUIET)
    assert "here 'gsm8k'" in caught.value.hint


def test_tasks_that_the_endpoint_cannot_measure_are_named(server, remote):
    with pytest.raises(UserError, match="'perplexity' cannot be measured"):
        evaluate(remote, "perplexity", data=["a text"], **QUIET)
    server.likelihoods = False
    with pytest.raises(UserError, match="'choosing' cannot be measured.*no log-probabilities") as caught:
        evaluate(remote, [Choosing(), "gsm8k"], data={"gsm8k": PROBLEMS}, **QUIET)
    assert "here 'gsm8k'" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "no log-probability for every token"),
        ({"token_logprobs": [-1, -1, -1]}, "does not return the text"),
        ({"token_logprobs": [None, 0.5, 0.5]}, "0.5 as a log-probability"),
        ({"token_logprobs": [None, "high", -1]}, "'high' as a log-probability"),
        ({"tokens": ["a"]}, "not one token"),
        ({"tokens": [1, 2, 3]}, "not one token"),
        ({"top_logprobs": None}, "not one token"),
    ],
)
def test_log_probabilities_are_checked(server, remote, change, message):
    lists = {"tokens": ["a", "b", "c"], "token_logprobs": [None, -1, -1], "top_logprobs": [None, {}, {}]}
    server.changes = lists | change
    with pytest.raises(UserError, match=message):
        evaluate(remote, Choosing(), **QUIET)


def test_a_server_that_does_not_echo_is_refused(server, remote):
    for text in ("four", "One two three four", None):
        server.texts = {"One two three": text}
        with pytest.raises(UserError, match="does not return the text that it was given"):
            evaluate(remote, Choosing(), **QUIET)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_fails_for_the_moment_is_sent_again(server, completing, status):
    server.fails = [status, status]
    assert completing.answer(completing.prepare([Generate("the cat")]))
    server.fails = [status] * 5
    with pytest.raises(EndpointError, match=f"answers {status}") as caught:
        completing.answer(completing.prepare([Generate("the cat")]))
    assert caught.value.status == status
    assert len(server.seen) == 8


def test_a_wrong_key_is_told_and_not_shown(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.key = "another"
    with pytest.raises(EndpointError, match=r"answers 401: Incorrect API key: \*\*\*") as caught:
        evaluate(Remote(server.url, model="tiny"), "gsm8k", **QUIET)
    assert KEY not in str(caught.value) and "OPENAI_API_KEY" in caught.value.hint
    assert len(server.seen) == 1


def test_an_unknown_model_and_a_wrong_address_are_told(server):
    for remote in (Remote(server.url, model="huge"), Remote(server.url + "/wrong", model="tiny")):
        with pytest.raises(EndpointError, match="answers 404: The model .* is not served here"):
            evaluate(remote, Choosing(), **QUIET)
    closed = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    closed.server_close()
    with pytest.raises(EndpointError, match="cannot be reached"):
        evaluate(Remote(f"http://127.0.0.1:{closed.server_port}", model="tiny"), "gsm8k", **QUIET)


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[]", b"{}", b'{"choices": [1]}', b'{"choices": [{"text": 1}]}', b"[" * 9999]
)
def test_malformed_answers_are_refused(server, remote, answer):
    server.answers["/v1/completions"] = answer
    with pytest.raises(EndpointError, match="The server's answer is"):
        evaluate(remote, "gsm8k", **QUIET)


def test_too_long_an_answer_is_refused(server, remote, monkeypatch):
    monkeypatch.setattr(endpoint, "_MAX_BYTES", 100)
    server.answers["/v1/completions"] = b" " * 200
    with pytest.raises(EndpointError, match="longer than"):
        evaluate(remote, "gsm8k", **QUIET)


def test_a_server_that_does_not_answer_is_given_up(server):
    waiting = threading.Event()
    server.respond = lambda path, body: waiting.wait(10) and {}
    remote = Remote(server.url, model="tiny", timeout=0.05, tries=2)
    try:
        with pytest.raises(EndpointError, match=r"within 0\.05 seconds"):
            evaluate(remote, "gsm8k", **QUIET)
        assert len(server.seen) == 2
    finally:
        waiting.set()


def test_a_redirect_does_not_get_the_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for status in (301, 302, 307, 308):
        server.fails = [status]
        with pytest.raises(EndpointError, match=f"answers {status}") as caught:
            evaluate(Remote(server.url, model="tiny"), "gsm8k", **QUIET)
        assert "Redirects are not followed" in caught.value.hint
    assert {path for path, *_ in server.seen} == {"/v1/completions"}


def test_hostile_text_is_only_text(server, remote, tmp_path):
    text = HOSTILE + "\ud800"
    server.answers["/v1/completions"] = {"choices": [{"text": text, "finish_reason": HOSTILE}]}
    report = evaluate(remote, "gsm8k", data={"gsm8k": PROBLEMS}, progress=False)
    assert columns(report)[0]["written"][0] == HOSTILE + "?"
    report.save(tmp_path / "report.html")
    assert HOSTILE not in (tmp_path / "report.html").read_text()


def test_an_interruption_reports_the_first_examples(remote, interrupt_after):
    interrupt_after(9)
    report = evaluate(remote, Choosing(), **QUIET)
    assert "interrupted after 3 of 24" in report.sections[0].note


def test_an_interruption_ends_the_waiting(server):
    pause = threading.Event()

    def respond(path, body):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        pause.wait(10)
        return {}

    server.respond = respond
    remote = Remote(server.url, model="tiny", api="completions", concurrency=1)
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate(remote, "gsm8k", data={"gsm8k": PROBLEMS}, **QUIET)
        assert len(server.seen) == 1  # the others are not sent any more
    finally:
        pause.set()


def test_stop_strings_beyond_the_fourth_are_cut_here(server, completing):
    server.answers["/v1/completions"] = {"choices": [{"text": "one five two", "finish_reason": "stop"}]}
    sampling = SamplingConfig(temperature=0.0, stop=("a!", "b!", "c!", "d!", "five"))
    (found,) = completing.answer(completing.prepare([Generate("x", sampling)]))
    assert (found.text, found.stopped_by, found.stop_string) == ("one ", "stop", "five")
    assert server.seen[0][1]["stop"] == ["a!", "b!", "c!", "d!"]


def test_texts_drawn_of_one_prompt_have_seeds_of_their_own(server, completing):
    sampling = SamplingConfig(temperature=1.0, seed=5, max_new_tokens=2)
    completing.answer(completing.prepare([Generate("x", sampling)] * 3))
    assert sorted(body["seed"] for _, body, _ in server.seen) == [5, 6, 7]


def test_what_the_api_does_not_have_is_refused(remote):
    for settings in ({"top_k": 5}, {"num_beams": 2}, {"repetition_penalty": 1.2}):
        with pytest.raises(UserError, match="has no setting"):
            remote.answer(remote.prepare([Generate("x", SamplingConfig(**settings))]))
    with pytest.raises(UserError, match="whole document"):
        remote.answer([Prepared(DocumentLikelihood("text"), [], [])])
    with pytest.raises(UserError, match="run belongs"):
        evaluate(remote, "gsm8k", run="tour", **QUIET)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "no HTTP address"),
        ("file:///etc/passwd", "no HTTP address"),
        ("http://a b/", "no HTTP address"),
        ("http://[::1", "no HTTP address"),
        ("https://me:secret@example.org/v1", "user name"),
        ("https://example.org/v1?key=secret", "query"),
        ("http://example.org/v1", "unencrypted"),
    ],
)
def test_addresses_are_checked(url, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UserError, match=message):
        Remote(url, model="tiny")


def test_arguments_are_checked(monkeypatch):
    for settings in ({"api": "chats"}, {"timeout": 0}, {"concurrency": 0}, {"model": " "}):
        with pytest.raises(UserError):
            Remote("http://localhost/v1", **{"model": "tiny", **settings})
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(UserError, match="holds is no key") as caught:
        Remote("http://localhost/v1", model="tiny")
    assert "lines" not in str(caught.value)
