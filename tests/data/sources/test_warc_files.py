import gzip

import pytest

from nbllm.core.errors import DataError, SkippedWarning
from nbllm.data import Pipeline, load
from nbllm.data.sources.html_pages import decode_page, plain_text

pytest.importorskip("trafilatura")
pytest.importorskip("warcio")

SENTENCES = "Die mööse sind eine Art von Tieren, die es in diesem Satz gibt. " * 6


def page(body, declared=""):
    head = f"<head>{declared}<title>t</title></head>"
    return f"<html>{head}<body><nav>menu</nav><article><p>{body}</p></article></body></html>"


def archive(records, *, gz=True):
    """Return a web archive by ISO 28500: (kind, url, status, content type, content) each, a gzip member each."""
    out = b""
    for number, (kind, url, status, content_type, content) in enumerate(records):
        if kind == "response":
            content = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n\r\n".encode() + content
            content_type = "application/http; msgtype=response"
        head = (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
            f"WARC-Record-ID: <urn:uuid:{number}>\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        record = head.encode() + content + b"\r\n\r\n"
        out += gzip.compress(record) if gz else record
    return out


PAGES = [
    ("response", "http://a.example/1", "200 OK", "text/html; charset=iso-8859-1", page(SENTENCES).encode("latin-1")),
    ("response", "http://a.example/2", "200 OK", "text/html",
     page(SENTENCES, '<meta charset="iso-8859-1">').encode("latin-1")),
    ("response", "http://a.example/gone", "404 Not Found", "text/html", page(SENTENCES).encode()),
    ("response", "http://a.example/i.png", "200 OK", "image/png", b"\x89PNG" * 100),
    ("response", "http://a.example/t.txt", "200 OK", "text/plain; charset=utf-8", "plain mööse".encode()),
    ("response", "http://a.example/empty", "200 OK", "text/html", b"<html></html>"),
]  # fmt: skip


@pytest.mark.parametrize("gz", [True, False])
def test_the_main_text_of_pages_is_read_in_their_declared_character_set(tmp_path, gz):
    path = tmp_path / ("crawl.warc.gz" if gz else "crawl.warc")
    path.write_bytes(archive(PAGES, gz=gz))
    data = load(path)
    assert data["source"][:] == ["http://a.example/1", "http://a.example/2", "http://a.example/t.txt"]
    assert data["text"][0] == data["text"][1] == SENTENCES.strip()
    assert "menu" not in data["text"][0]
    assert data["text"][2] == "plain mööse"
    assert "1 x page without a main text" in data.info.description
    assert "1 x no page, 1 x page that was not found" in data.info.description


def test_a_wet_file_is_read_as_it_is(tmp_path):
    texts = ["Grüße, 世界\nzwei Zeilen", "second"]
    records = [
        ("conversion", f"http://a.example/{i}", "", "text/plain", text.encode())
        for i, text in enumerate(texts)
    ]
    (tmp_path / "crawl.warc.wet.gz").write_bytes(archive(records))
    data = load(tmp_path / "crawl.warc.wet.gz")
    assert data["text"][:] == texts


def test_a_cut_archive_is_named_and_what_came_before_is_kept(tmp_path):
    whole = gzip.decompress(archive(PAGES))
    (tmp_path / "cut.warc").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=r"archive is damaged(.|\n)*after record"):
        load(tmp_path / "cut.warc")
    with pytest.warns(SkippedWarning, match="damaged archive"):
        assert load(tmp_path / "cut.warc", on_error="skip")["source"][:] == ["http://a.example/1"]
    (tmp_path / "none.warc").write_bytes(b"this is no archive\n" * 10)
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path / "none.warc")


@pytest.mark.parametrize(
    ("data", "content_type", "text"),
    [
        ("mööse".encode("latin-1"), "text/html; charset=ISO-8859-1", "mööse"),
        ("mööse".encode(), "text/html; charset=iso-8859-1", "mÃ¶Ã¶se"),  # the header decides
        ("mööse".encode(), "", "mööse"),
        ("\ufeffmööse".encode("utf-16"), "text/html; charset=iso-8859-1", "mööse"),  # the mark comes first
        (b"<meta http-equiv=a content='text/html; charset=windows-1251'>\xec", "", None),
        ("mööse €".encode("cp1252"), "text/html; charset=latin1", "mööse €"),  # as browsers do
        (SENTENCES.encode("latin-1"), "text/html; charset=utf-8", SENTENCES),  # a header that is wrong
        (b"\xe9\xe8", "text/html; charset=base64", None),  # no character set
    ],
)
def test_the_character_set(data, content_type, text):
    decoded = decode_page(data, content_type)
    assert decoded == text if text is not None else isinstance(decoded, str)


def test_posts_become_plain_text():
    post = "<p>One &amp; <b>two</b></p>\n<pre><code>  x = 1\n    y</code></pre><ul><li>a</li><li>b</li></ul>"
    post += "<script>no</script>"
    assert plain_text(post) == "One & two\n\n  x = 1\n    y\n\n- a\n\n- b"


def test_a_pipeline_reads_archives_and_says_what_it_did_not_use(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "crawl.warc.gz").write_bytes(archive(PAGES))
    prepared = Pipeline([]).run(tmp_path / "in", tmp_path / "out")
    assert prepared.dataset()["source"][:] == load(tmp_path / "in")["source"][:]
    assert "1 x page without a main text" in prepared.manifest["notes"][0]
    assert "without a main text" in prepared._repr_html_()
