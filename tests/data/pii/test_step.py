"""The step of privacy: placeholders that are the same for the same person everywhere, and tell nothing."""

import json
import pickle
import re
import stat
import subprocess
import sys

import pyarrow as pa
import pytest

from nbllm.core.errors import CacheError, UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.pii.placeholders import KEY_BYTES, mask, own_key, placeholder
from nbllm.data.pii.step import privacy
from nbllm.data.pipeline.pipeline import Pipeline
from nbllm.data.pipeline.step import STEPS

KEY = bytes(range(32))


def texts_of(*texts):
    return Texts.of(pa.array(texts, pa.string()))


def edited(step, *texts):
    """Return the documents after the step's edits."""
    batch, out = texts_of(*texts), []
    edits = step.edits(batch)
    for number in range(batch.num_documents):
        text, behind = batch[number], 0
        parts = []
        for place in (edits.document == number).nonzero()[0]:
            new = b"" if edits.replacement is None else edits.replacement[place]
            parts += [text[behind : edits.start[place]], new]
            behind = edits.stop[place]
        out.append((b"".join(parts) + text[behind:]).decode())
    return out


def find_ann_and_bob(text):
    return [match.span() for match in re.finditer("Ann|Bob", text)]


def test_ann_bob_ann_on_any_number_of_workers():
    step = privacy(names=find_ann_and_bob, key=KEY)
    first, second = edited(step, "Ann met Bob.", "Then Ann left.")
    ann, bob = re.findall(r"\[NAME-\w{6}\]", first)
    assert ann != bob and second == f"Then {ann} left."
    alone = [edited(pickle.loads(pickle.dumps(step)), text)[0] for text in ("Then Ann left.", "Ann met Bob.")]
    assert alone == [second, first]
    assert edited(privacy(names=find_ann_and_bob, key=bytes(32)), "Ann") != edited(step, "Ann")


def test_the_same_number_written_otherwise_is_the_same_person():
    step = privacy(key=KEY)
    same = [
        ("4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111"),
        ("DE89 3704 0044 0532 0130 00", "DE89370400440532013000"),
        ("Ann@Example.com", "ann@example.com"),
        ("+49 30 901820", "+49-30-901820"),
    ]
    for written in same:
        assert len(set(edited(step, *written))) == 1
    assert len({new for written in same for new in edited(step, *written)}) == len(same)


def test_what_was_replaced_is_not_found_again():
    step = privacy(key=KEY)
    once = edited(
        step, "ann@example.com, 8.8.8.8, 4111111111111111, 123-45-6789, https://ann:hunter2@host.org"
    )
    assert not re.search("ann|8.8|4111|6789|hunter", once[0])
    assert edited(step, *once) == once


def test_remove_tag_and_drop():
    text = "to ann@example.com or bob@example.com"
    assert edited(privacy(action="remove"), text) == ["to  or "]
    tagged = privacy(["email", "ip"], action="tag").edits(texts_of(text, None, ""))
    assert len(tagged.document) == 0
    assert {name: column.tolist() for name, column in tagged.signals.items()} == {
        "privacy/email": [2, 0, 0],
        "privacy/ip": [0, 0, 0],
    }
    drop = privacy(action="drop")
    assert {rule.kind for rule in drop.rules} == {"document"}
    assert drop.edits(texts_of("x", text)).document.tolist() == [1, 1]


def test_displays_are_masked_and_the_key_is_told_nowhere():
    step = privacy(key=KEY)
    assert mask(b"ann@example.com") == "a••@•••••••.•••"
    assert mask(b"4111 1111 1111 1111") == "4••• •••• •••• ••••"
    assert len(mask(b"x" * 5000)) == 40 and mask(b"") == ""
    assert step.edits(texts_of("ann@example.com")).shown == [mask(b"ann@example.com")]
    told = json.dumps(step.describe()) + repr(step)
    assert repr(KEY) not in told and KEY.hex() not in told
    assert step.describe() == privacy(key=KEY).describe() != privacy(key=bytes(32)).describe()
    assert STEPS["privacy"] is type(step)


def test_this_users_key_is_made_once_and_is_theirs_alone(cache):
    key = own_key()
    assert len(key) == KEY_BYTES and own_key() == key
    assert stat.S_IMODE((cache / "privacy.key").stat().st_mode) == 0o600
    code = "from nbllm.data.pii.placeholders import own_key; print(own_key().hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == key.hex()
    (cache / "privacy.key").write_bytes(b"short")
    with pytest.raises(CacheError, match="damaged"):
        own_key()


def test_placeholders_are_spread_over_all_letters():
    made = {placeholder("card", str(number).encode(), KEY) for number in range(20_000)}
    assert len(made) >= 19_998  # of 2 ** 30
    assert placeholder("email", b"a@b.com", KEY) != placeholder("name", b"a@b.com", KEY)


def test_settings_are_checked():
    for settings, message in [
        ({"action": "delete"}, "no action 'delete'"),
        ({"kinds": ["mail"]}, "no kind of personal data"),
        ({"regions": ["XX"]}, "numbering plan of 'XX'"),
        ({"names": "Ann"}, "names must be a function"),
        ({"key": b"short"}, "key must be 32 bytes"),
    ]:
        with pytest.raises(UserError, match=message):
            privacy(**settings)


def test_without_the_extra_telephone_numbers_are_left_and_this_is_said(monkeypatch, capsys):
    monkeypatch.setattr("nbllm.data.pii.phones.is_installed", lambda: False)
    step = privacy()
    assert "pip install 'nbllm[privacy]'" in capsys.readouterr().out
    assert edited(step, "(212) 555-0123") == ["(212) 555-0123"]


def test_a_pipeline_gives_the_same_placeholders_on_any_number_of_workers_and_a_masked_ledger(tmp_path):
    step = privacy(names=find_ann_and_bob, key=KEY)
    source = tmp_path / "source"
    source.mkdir()
    for name in "abcd":
        lines = [
            json.dumps({"text": text}) for text in ("Ann", "Bob", f"{name}: Ann or Bob, ann@example.com")
        ]
        (source / f"{name}.jsonl").write_text("\n".join(lines))
    pipeline = Pipeline([step], part_bytes=40)
    made = [pipeline.run(source, tmp_path / str(workers), workers=workers) for workers in (1, 3)]
    first, second = ([path.read_bytes() for path in prepared.files] for prepared in made)
    assert first == second and len(first) > 1
    kept = made[0].dataset()["text"][:]
    ann, bob = (placeholder("name", name, KEY).decode() for name in (b"Ann", b"Bob"))
    assert kept.count(ann) == kept.count(bob) == 4 and sum(text.count(ann) for text in kept) == 8
    ledger = made[0].ledger
    assert set(ledger["text"]) == {mask(b"Ann"), mask(b"Bob"), mask(b"ann@example.com")}
    assert set(ledger["rule"]) == {"privacy: name", "privacy: email"} and set(ledger["kind"]) == {"span"}
    spans = {(row.start, row.stop) for row in ledger.itertuples() if row.rule == "privacy: email"}
    assert {"a: Ann or Bob, ann@example.com"[start:stop] for start, stop in spans} == {"ann@example.com"}
