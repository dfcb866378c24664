import pytest

from nbllm.core.errors import DataError, SkippedWarning
from nbllm.data import load


def write(folder, text, name="a.csv", encoding="utf-8"):
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize(("sign", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_other_delimiters_are_read_and_said(tmp_path, sign, word):
    data = load(write(tmp_path, f'id{sign}text\n1{sign}"one{sign} two"\n2{sign}a, b\n'))
    assert data["text"][:] == [f"one{sign} two", "a, b"]
    assert f"separated by {word}" in data.info.description


def test_a_comma_file_with_semicolons_in_it(tmp_path):
    data = load(write(tmp_path, "id,text,note (a;b;c;d)\n1,one,x\n"))
    assert data["text"][:] == ["one"]


def test_a_column_of_numbers_is_not_the_text(tmp_path):
    assert load(write(tmp_path, "n,body\n1,one\n2,two\n"))["text"][:] == ["one", "two"]


def test_stray_quotes_in_tsv_are_characters_and_merge_nothing(tmp_path):
    path = write(
        tmp_path, 'id\ttext\n1\t"a quote begins\n2\tfine\n3\tand one ends"\n4\t"x" he said\n', "a.tsv"
    )
    assert load(path)["text"][:] == ['"a quote begins', "fine", 'and one ends"', '"x" he said']


def test_quoted_tsv_is_unquoted_also_over_lines(tmp_path):
    path = write(tmp_path, 'id\ttext\n1\t"a\tb"\n2\t"one\ntwo ""three"""\n3\t"whole"\n', "a.tsv")
    assert load(path)["text"][:] == ["a\tb", 'one\ntwo "three"', "whole"]


def test_an_open_quote_costs_one_row_and_no_more(tmp_path):
    path = write(tmp_path, 'id,text\n1,"never closed\n2,fine\n3,also "" fine\n4,last\n')
    with pytest.raises(DataError, match="The row is not CSV"):
        load(path)
    with pytest.warns(SkippedWarning, match=r"1 x broken CSV row \(.*line 2\)"):
        data = load(path, on_error="skip")
    assert data["text"][:] == ["fine", 'also "" fine', "last"]
    assert data["source"][:] == ["a.csv:3", "a.csv:4", "a.csv:5"]


def test_many_open_quotes_take_linear_time(tmp_path):
    """Each broken row is given up for itself; reading on must not start over from each."""
    lines = "".join(f'{n},"open\n' + "x,plain\n" * 50 for n in range(400))
    with pytest.warns(SkippedWarning):
        data = load(write(tmp_path, "id,text\n" + lines), on_error="skip")
    assert data["text"].__len__() >= 19_000


def test_a_column_that_stands_twice(tmp_path):
    with pytest.raises(DataError, match="several columns 'text'"):
        load(write(tmp_path, "text,text\na,b\n"))


GBK = "你好世界中文的文本"
ENCODED = [
    ("gb18030", GBK),
    ("cp1252", "naïve “quoted”"),
    ("shift_jis", "日本語の文章"),
    ("utf-16-le", "Grüße\nzwei"),
]


@pytest.mark.parametrize(("encoding", "text"), ENCODED)
@pytest.mark.parametrize("sample_by", ["document", "line"])
def test_encodings_that_are_named(tmp_path, encoding, text, sample_by):
    path = write(tmp_path, text, "a.txt", encoding)
    expected = [text] if sample_by == "document" else text.split("\n")
    assert load(path, encoding=encoding, sample_by=sample_by)["text"][:] == expected
    table = write(tmp_path, f'id,text\n1,"{text}"\n', "a.csv", encoding)
    assert load(table, encoding=encoding)["text"][:] == [text]


def test_what_is_not_utf_8_is_not_guessed(tmp_path):
    with pytest.raises(DataError, match="is not UTF-8") as caught:
        load(write(tmp_path, GBK, "a.txt", "gbk"))
    assert "encoding=" in str(caught.value.hint)
    assert "latin" not in str(caught.value).lower()
    with pytest.raises(DataError, match="is not ascii"):
        load(write(tmp_path, "ü", "b.txt"), encoding="ascii")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding):
    assert load(write(tmp_path, "ein Gruß\n", "a.txt", encoding))["text"][:] == ["ein Gruß\n"]
    assert load(write(tmp_path, "id\ttext\n1\tü\n", "a.csv", encoding))["text"][:] == ["ü"]
    assert load(write(tmp_path, '[{"text": "ü"}]', "a.json", encoding))["text"][:] == ["ü"]
