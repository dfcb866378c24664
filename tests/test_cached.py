import os
import time

import pytest

import nbllm as nb
from nbllm.cached import KINDS
from nbllm.core import kernel_cache
from nbllm.core.cache import ABANDONED_AFTER
from nbllm.core.errors import UserError
from nbllm.models.zoo.known import MODELS
from nbllm.models.zoo.wheel import Wheel
from nbllm.nn.compute import profile

MODEL = next(s.path.name for m in MODELS.values() for s in m.sources if isinstance(s, Wheel))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache with something of each kind, in a folder where others keep things too."""
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setattr("nbllm.cached.KINDS", {k: v for k, v in KINDS.items() if k != "kernels"})
    for name, content in {
        f"models/{MODEL}": "weights",
        "models/mine.gguf": "mine",
        f"tokens/{'0a' * 16}/tokens.bin": "tokens of a text",
        f"tokens/{'0a' * 16}.lock": "",
        "tokens/notes.txt": "mine",
        "machine-profiles/cpu-0123456789abcdef.json": "{}",
        "texts/.aside-old/text.arrow": "left",
        "texts/.aside-new/text.arrow": "in use",
        "thesis.tex": "mine",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    long_ago = time.time() - ABANDONED_AFTER - 100
    os.utime(tmp_path / "texts/.aside-old", (long_ago, long_ago))
    return tmp_path


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_cache_says_what_it_keeps(folder):
    rows = {row[0]: row[1:] for row in nb.cache().rows()}
    assert rows["models"][:3] == ("published models", "7 B", "1")
    assert rows["tokens"][1:3] == ("16 B", "2")
    assert rows["texts"][1:3] == ("4 B", "1")
    assert rows["profiles"][-1] == str(folder / "machine-profiles")
    assert nb.cache().kept[0].last_used == pytest.approx(time.time(), abs=60)
    assert nb.cache().num_bytes == 29
    for shown in (repr(nb.cache()), nb.cache()._repr_html_()):
        assert "published models" in shown and "29 B" in shown


def test_one_kind_is_cleared_and_nothing_else(folder):
    before = files(folder)
    cache = nb.cache()
    assert cache.clear("tokens") == 16
    assert before - files(folder) == {f"tokens/{'0a' * 16}/tokens.bin", f"tokens/{'0a' * 16}.lock"}
    assert cache.num_bytes == 13
    assert cache.clear("tokens") == 0


def test_all_is_cleared_but_what_is_not_ours(folder):
    nb.cache().clear()
    left = {"models/mine.gguf", "tokens/notes.txt", "texts/.aside-new/text.arrow", "thesis.tex"}
    assert files(folder) == left


def test_links_are_not_followed(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "thesis.txt").write_text("mine")
    (folder / "tokens" / ("1b" * 16)).symlink_to(folder / "elsewhere")
    nb.cache().clear("tokens")
    assert not (folder / "tokens" / ("1b" * 16)).is_symlink()
    assert (folder / "elsewhere" / "thesis.txt").read_text() == "mine"


def test_a_kind_that_there_is_not(folder):
    with pytest.raises(UserError, match=r"nothing of the kind 'token'[\s\S]*Did you mean 'tokens'"):
        nb.cache().clear("token")


def test_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "none"))
    assert {row[0]: row[2] for row in nb.cache().rows() if row[0] != "kernels"} == dict.fromkeys(
        ("models", "tokens", "texts", "prepared", "profiles"), "0 B"
    )


def test_what_is_packed_and_measured_is_found(tmp_path, monkeypatch):
    """By the names that packing and measuring give."""
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path))
    store = nb.data.pack(["A text. " * 20], nb.data.train_tokenizer(["A text. " * 20], kind="byte"))
    file = profile._path(profile._subject("cpu", 1))
    file.parent.mkdir()
    file.write_text("{}")
    held = {kept.kind.name: kept for kept in nb.cache().kept}
    assert store.path in held["tokens"].paths
    assert held["tokens"].num_bytes == sum(each.stat().st_size for each in store.path.iterdir())
    assert held["profiles"].paths == (file,)
    nb.cache().clear("tokens")
    assert list((tmp_path / "tokens").iterdir()) == []
    again = nb.data.pack(["A text. " * 20], nb.data.train_tokenizer(["A text. " * 20], kind="byte"))
    assert again.fingerprint == store.fingerprint


def test_compiled_kernels_are_found_where_numba_keeps_them(tmp_path, monkeypatch):
    """Numba's own answer, for one of our kernels."""
    from numba.core import caching

    from nbllm.data.kernels import packing

    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    function = next(f for f in vars(packing).values() if hasattr(f, "py_func"))
    locator = caching.UserProvidedCacheLocator.from_function(function.py_func, packing.__file__)
    file = os.path.join(locator.get_cache_path(), "one.nbi")
    with open(file, "w"):
        pass
    assert file in {str(path) for path in kernel_cache.cached_kernels()}
