"""The hub as a source, against a server on this machine that answers as the hub does.

Its library reads the server's address when it is imported, so each test asks it in a process of its own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import nbllm as nb
from nbllm.models.zoo.hub import FILES, WEIGHTS

REVISION = "0123456789" * 4
REPOSITORY = "someone/toy"


def blob(data):
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Answers(BaseHTTPRequestHandler):
    """The hub's three addresses: what a revision is, what files it has, and each of them."""

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        files, path = self.server.files, self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            return self.answer(json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": []}).encode(), body)
        if path == f"/api/models/{REPOSITORY}/tree/{REVISION}":
            return self.answer(json.dumps([self.entry(name) for name in files]).encode(), body)
        name = re.sub(rf"^/{REPOSITORY}/resolve/{REVISION}/", "", path)
        if name not in files:
            return self.send_error(404)
        self.answer(files[name], body, {"ETag": f'"{self.etag(name)}"', "X-Repo-Commit": REVISION})

    def etag(self, name):
        return self.server.sha256 if name == WEIGHTS else blob(self.server.files[name])

    def entry(self, name):
        data = self.server.files[name]
        entry = {"type": "file", "path": name, "size": len(data), "oid": blob(data)}
        if name == WEIGHTS:
            entry["lfs"] = {"oid": self.etag(name), "size": len(data), "pointerSize": 134}
        return entry

    def answer(self, data, body, headers=()):
        self.send_response(200)
        for key, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """A hub with one model and a file that must not be asked for."""
    tokenizer = nb.data.train_tokenizer(["some text"], vocab_size=300)
    lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=32)
    folder = lm.save(tmp_path / "model")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.files = {name: (folder / name).read_bytes() for name in FILES}
    server.files["pytorch_model.bin"] = b"pickle"
    server.sha256 = hashlib.sha256(server.files[WEIGHTS]).hexdigest()
    server.asked, server.lm = [], lm
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ask(hub, tmp_path):
    """Run code in which `source` is the model on that hub; return its output, an error as its last line."""

    def ask(code, sha256=hub.sha256, **environment):
        before = f"""
import sys
import nbllm as nb
from nbllm.models.zoo.hub import Hub
sys.excepthook = lambda kind, error, trace: print(kind.__name__, error)
source = Hub(repository={REPOSITORY!r}, revision={REVISION!r}, sha256={sha256!r}, num_bytes=1, weights="float32")
"""
        endpoint = f"http://127.0.0.1:{hub.server_port}"
        names = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", before + code],
            env={**os.environ, **names, **environment}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout.strip()

    return ask


def test_a_model_comes_verified_opens_and_stays(hub, ask):
    code = """
print(source.find())
lm = nb.load(source.fetch())
print(repr(lm.generate("some", max_new_tokens=4, temperature=0) + ""))
print(source.fetch() == source.find())
"""
    none, text, same = ask(code).split("\n")
    assert (none, same) == ("None", "True")
    assert text == repr(hub.lm.generate("some", max_new_tokens=4, temperature=0) + "")
    assert sum("GET" in asked and WEIGHTS in asked for asked in hub.asked) == 1
    assert not any("pytorch_model" in asked for asked in hub.asked)
    asked = len(hub.asked)
    assert ask("print(source.find() == source.fetch())", HF_HUB_OFFLINE="1") == "True"
    assert len(hub.asked) == asked


def test_weights_with_another_checksum_are_refused_and_taken_out(hub, ask, tmp_path):
    assert ask("source.fetch()", sha256="0" * 64).startswith("FetchError the weights that came have another")
    assert not list((tmp_path / "home").rglob(WEIGHTS))
    assert hub.sha256 not in [path.name for path in (tmp_path / "home").rglob("*")]
    assert ask("print(source.find())") == "None"


def test_a_damaged_copy_is_downloaded_again(hub, ask, tmp_path):
    ask("source.fetch()")
    (weights,) = (tmp_path / "home").rglob(f"blobs/{hub.sha256}")
    weights.write_bytes(hub.files[WEIGHTS][:-1] + b"?")
    ask("source.fetch()")
    assert weights.read_bytes() == hub.files[WEIGHTS]


def test_a_repository_that_lacks_a_file_is_named(hub, ask):
    del hub.files["tokenizer.json"]
    assert ask("source.fetch()") == "FetchError the repository lacks tokenizer.json"


def test_a_repository_that_is_not_there_is_named(hub, ask):
    assert ask(
        "import dataclasses; dataclasses.replace(source, repository='someone/else').fetch()"
    ).startswith("FetchError ")


def test_offline_mode_asks_nobody(hub, ask):
    assert ask("source.fetch()", HF_HUB_OFFLINE="1").startswith("FetchError ")
    assert not hub.asked


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of that kind")
def test_a_full_disk_is_named(hub, ask):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); source.fetch()"
    said = ask(code)
    assert said.startswith("CacheError The cache cannot be written") and "HF_HUB_CACHE" in said
    assert ask("print(source.find())") == "None"
