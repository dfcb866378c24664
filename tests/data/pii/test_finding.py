"""Recall and precision on planted items and look-alikes; each case that went wrong elsewhere; hostile bytes."""

import pyarrow as pa
import pytest

from nbllm.core.errors import UserError
from nbllm.core.text_table import text_table
from nbllm.data.arrow_text import Texts
from nbllm.data.pii.detector import DETECTORS
from nbllm.data.pii.finding import KINDS, check_kinds, find_personal_data
from tests.data.pii.generated import KINDS as PLANTED, documents

ALL = tuple(kind for kind in KINDS if kind != "name")


def find(*texts, **settings):
    """Return what is found: (document, kind, text)."""
    kinds = settings.pop("kinds", ALL)
    column = pa.array([text.encode() if isinstance(text, str) else text for text in texts], pa.binary())
    found = find_personal_data(Texts.of(column), kinds, **settings)
    assert all(found.stop[i] - found.start[i] == len(value) for i, value in enumerate(found.values))
    return [
        (document, kinds[kind], value.decode("utf-8", "replace"))
        for document, kind, value in zip(
            found.document.tolist(), found.kind.tolist(), found.values, strict=True
        )
    ]


def test_recall_and_precision_of_every_kind():
    texts, truth = documents(2000)
    found = find(*texts)
    expected = [(number, *item) for number, items in enumerate(truth) for item in items]
    rows = [("kind", "planted", "found", "right", "recall", "precision")]
    for kind in PLANTED:
        planted = {each for each in expected if each[1] == kind}
        got = {each for each in found if each[1] == kind}
        right = len(planted & got)
        recall, precision = right / len(planted), right / len(got)
        rows.append((kind, *map(str, (len(planted), len(got), right)), f"{recall:.3f}", f"{precision:.3f}"))
        missed, wrong = sorted(planted - got)[:12], sorted(got - planted)[:12]
        print(kind, "missed", missed, "wrong", wrong)
    print(text_table(rows))
    for row in rows[1:]:
        assert float(row[4]) >= 0.98 and float(row[5]) >= 0.95, row


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # shape taken for proof
        ("1747731000", []),
        ("2.3.55.987 and 10.0.0.256", []),
        ("6011577631711174", [("card", "6011577631711174")]),
        ("DE89370400440532013000 FAILED", [("iban", "DE89370400440532013000")]),
        ("DE89 3704 0044 0532 0130 00 FAILED", [("iban", "DE89 3704 0044 0532 0130 00")]),
        ("DE893704004405320130001", []),
        ("DE89370400440532013001", []),
        ("NO9386011117947 GB82WEST12345698765432", [("iban", "NO9386011117947"), ("iban", "GB82WEST12345698765432")]),
        # addresses that nobody else can reach, and numbers that are none
        ("127.0.0.1 192.168.0.1 172.16.3.4 169.254.1.1 0.0.0.0 255.255.255.255 224.0.0.1 203.0.113.7", []),
        ("see 8.8.8.8.", [("ip", "8.8.8.8")]),
        ("version 5.15.0.41, v1.2.3.4, 1.2.3.4.5, 1.2.3.4-rc1", []),
        ("fe80::1 ::1 2001:db8::1 std::dead::beef 12:30:45", []),
        ("2001:4860:4860::8888", [("ip", "2001:4860:4860::8888")]),
        # where an item ends
        ("请联系ann@example.com吧", [("email", "ann@example.com")]),
        ("<ann@example.com>, `bob@example.org`.", [("email", "ann@example.com"), ("email", "bob@example.org")]),
        ("josé@müller.de", [("email", "josé@müller.de")]),
        ("a@b, @b.com, a@@b.com, a@b..com, .@b.com a@-b.com", []),
        ("call 2125550123 but order 2125550123", [("phone", "2125550123")]),
        ("(212) 555-0123", [("phone", "(212) 555-0123")]),
        ("between 2024-01-15 and 12.05.2024, 10 12 14 16 18 20 22 24", []),
        ("4111 1111 1111 1111", [("card", "4111 1111 1111 1111")]),
        ("4111 1111 1111 1112, 41111111111111111111, 1234 4111 1111 1111 1111", []),
        ("078-05-1120", [("national_id", "078-05-1120")]),
        ("000-12-3456 666-12-3456 900-12-3456 123-00-4567 123-45-0000", []),
        ("RSSMRA85T10A562S RSSMRA85T10A562T", [("national_id", "RSSMRA85T10A562S")]),
        ("529.982.247-25 529.982.247-26", [("national_id", "529.982.247-25")]),
        ("AB123456C", []),
        ("NINO AB123456C", [("national_id", "AB123456C")]),
        ("https://ann:hunter2@host.org/a", [("credentials", "ann:hunter2")]),
        ("https://user:password@host.org http://host.org:8080/@ann", []),
        ("AKIAIOSFODNN7EXAMPLE", []),
        ('db_password: "tr0ub4dor&3"', [("secret", "tr0ub4dor&3")]),
        ('password = "your_password1" token = get_token(1) secret_key = ""', []),
        ("da39a3ee5e6b4b0d3255bfef95601890afd80709 550e8400-e29b-41d4-a716-446655440000", []),
    ],
)  # fmt: skip
def test_an_item_is_proved_and_ends_where_it_ends(text, found):
    assert [each[1:] for each in find(text)] == found


def test_a_private_key_is_found_whole():
    body = "\n".join(
        "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"[i:] for i in range(20)
    )
    block = f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"
    assert find(f"a {block} b -----BEGIN PUBLIC KEY-----") == [(0, "secret", block)]


BAIT = [
    "a.", "a@", "a.@", "@", "1", "1 ", "1-", "1.", "(1", "+1 ", "12)", ":", "2001:", "a:b", "://", "a://b:", "secret=",
    "token: '", "-----BEGIN PRIVATE KEY-----", "-", "eyJabcdefghij.", "sk-", "DE89", "DE89 ", "tel 1", "é", "\x00",
    "\xff",
]  # fmt: skip


@pytest.mark.timeout(120)  # a pattern whose time grows with the square of the text takes hours
@pytest.mark.parametrize("kind", ALL)
def test_bait_for_backtracking_is_read_in_linear_time(kind):
    for bait in BAIT:
        text = bait.encode("latin-1") * (100_000 // len(bait))
        for _ in DETECTORS[kind].find(text, 0, len(text)):
            pass
        assert find(text, kinds=(kind,)) is not None


def test_null_slices_and_chunks_are_documents_too():
    column = pa.chunked_array(
        [pa.array(["x", None, "a@b.com"]).slice(1), pa.array([], pa.string()), pa.array(["c@d.com"])]
    )
    found = find_personal_data(Texts.of(column), ALL)
    assert found.document.tolist() == [1, 2] and found.values == [b"a@b.com", b"c@d.com"]
    assert find() == [] and find("", None, " ", "\x00") == []


def test_bytes_that_are_no_text_change_nothing_beside_them():
    assert find(b"\xff\xfe ann@example.com \x80\x00 8.8.8.8\xff") == [
        (0, "email", "ann@example.com"),
        (0, "ip", "8.8.8.8"),
    ]


def test_names_are_found_by_a_function_in_characters():
    def names(text):
        return [(place, place + 3) for place in range(len(text)) if text.startswith("Ann", place)]

    text = "é世 ".encode() + b"\xff Ann and Ann ann@example.com"
    assert find(text, kinds=(*ALL, "name"), names=names) == [
        (0, "name", "Ann"), (0, "name", "Ann"), (0, "email", "ann@example.com"),
    ]  # fmt: skip
    for wrong in [[(0, 99)], [(2, 1)], [(-1, 2)], ["ab"], [3], [(0.5, 2)]]:
        with pytest.raises(UserError, match="function of names returned"):
            find("Ann", kinds=("name",), names=lambda _, wrong=wrong: wrong)


def test_kinds_are_checked(monkeypatch):
    assert check_kinds(["card", "email"], names=False) == ("email", "card")
    assert check_kinds(None, names=False) == ALL and check_kinds(None, names=True) == KINDS
    with pytest.raises(UserError, match="Did you mean 'email'"):
        check_kinds(["e-mail"], names=False)
    with pytest.raises(UserError, match="a function of yours"):
        check_kinds("name", names=False)
    monkeypatch.setattr("nbllm.data.pii.phones.is_installed", lambda: False)
    assert "phone" not in check_kinds(None, names=False)
    with pytest.raises(UserError, match=r"nbllm\[privacy\]"):
        check_kinds("phone", names=False)
