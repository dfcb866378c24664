"""Text from tokens as they come: whole characters, stop strings across pieces, order of printing."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from nbllm.inference.streaming import Printer, StopScanner, StreamedText, TokenText

BYTES = bytes_to_unicode()


def pieces(tokenizer, tokens, prompt=()):
    text = TokenText(tokenizer, prompt)
    return [text.feed(token) for token in tokens] + [text.finish()]


@pytest.mark.parametrize(
    "text",
    [
        "the cat",
        "naïve café",
        "日本語のテキスト",
        "🙂👩‍👩‍👧 family",
        "a\u0301 combining",
        "\ufffd real \ufffd",
    ],
)
def test_pieces_are_whole_characters_and_make_the_text(tokenizer, text):
    tokens = tokenizer(text)["input_ids"]
    got = pieces(tokenizer, tokens)
    assert "".join(got) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in got)


def test_characters_come_as_soon_as_they_are_whole(tokenizer):
    tokens = tokenizer("x日y")["input_ids"]
    assert len(tokens) == 5
    assert pieces(tokenizer, tokens) == ["x", "", "", "日", "y", ""]


def test_a_replacement_character_that_the_text_has_does_not_wait(tokenizer):
    tokens = tokenizer("a\ufffdb")["input_ids"]
    assert len(tokens) == 5
    assert pieces(tokenizer, tokens) == ["a", "", "", "\ufffd", "b", ""]
    assert pieces(tokenizer, tokens[:-1])[-2:] == ["\ufffd", ""]


def test_bytes_that_can_become_no_character_do_not_wait(tokenizer):
    lone, start = (tokenizer.convert_tokens_to_ids(BYTES[byte]) for byte in (0x80, 0xE6))
    assert pieces(tokenizer, [lone, lone, start, start]) == ["\ufffd", "\ufffd", "", "", "\ufffd\ufffd"]


def test_a_special_token_inside_a_character_is_left_out(tokenizer):
    first, second, third = tokenizer("日")["input_ids"]
    eos = tokenizer.eos_token_id
    assert pieces(tokenizer, [first, eos, second, third]) == ["", "", "", "日", ""]


def test_random_tokens_give_what_the_tokenizer_decodes(tokenizer):
    """Mostly invalid UTF-8: what an untrained model writes."""
    rng = random.Random(0)
    for _ in range(200):
        tokens = [rng.randrange(1, 300) for _ in range(rng.randrange(1, 40))]
        assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_a_cut_character_at_the_end_is_shown_at_the_end_only(tokenizer):
    tokens = tokenizer("日")["input_ids"][:2]
    assert pieces(tokenizer, tokens) == ["", "", "\ufffd"]


def test_special_tokens_are_left_out(tokenizer):
    eos = tokenizer.eos_token_id
    tokens = [*tokenizer("the")["input_ids"], eos, *tokenizer(" cat")["input_ids"]]
    assert "".join(pieces(tokenizer, tokens)) == "the cat"


def metaspace_tokenizer(bytes_=("E2", "82", "AC")):
    """Marks word beginnings and drops the space at the start of a text, as LLaMA's tokenizer does."""
    words = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3}
    words |= {f"<0x{byte}>": number for number, byte in enumerate(bytes_, start=4)}
    made = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_a_word_after_the_prompt_keeps_its_space():
    tokenizer = metaspace_tokenizer()
    assert tokenizer.decode([2]) == "cat"
    assert "".join(pieces(tokenizer, [2, 3, 2], prompt=[1])) == " cats cat"
    assert "".join(pieces(tokenizer, [2, 3, 1])) == "cats the"


def test_byte_tokens_wait_for_the_whole_character():
    assert pieces(metaspace_tokenizer(), [2, 4, 5, 6, 3], prompt=[1]) == [" cat", "", "", "€", "s", ""]


def test_byte_tokens_of_a_real_replacement_character_do_not_wait():
    tokenizer = metaspace_tokenizer(bytes_=("EF", "BF", "BD", "FF", "E2"))
    real = [4, 5, 6]
    assert pieces(tokenizer, [2, *real, 3], prompt=[1]) == [" cat", "", "", "\ufffd", "s", ""]
    rng = random.Random(0)
    for _ in range(300):
        tokens = [2, *rng.choices(range(1, 9), k=rng.randrange(1, 12))]
        decoded = tokenizer.decode([1, *tokens])
        if "\ufffd" * 2 in decoded:
            continue  # bytes that are no text are decoded as a whole: what was given out before cannot be taken back
        assert "".join(pieces(tokenizer, tokens, prompt=[1])) == decoded.removeprefix("the")


def scan(stops, parts):
    scanner = StopScanner(stops)
    given = [scanner.feed(part) for part in parts]
    return given, scanner.finish(), scanner.found


def test_a_stop_string_across_pieces_is_never_given_out():
    given, rest, found = scan(["END"], ["ab", "cE", "N", "D more"])
    assert (given, rest, found) == (["ab", "c", "", ""], "", "END")


def test_what_only_began_like_a_stop_string_is_given_out():
    given, rest, found = scan(["END"], ["aE", "N", "x", "EN"])
    assert (given, rest, found) == (["a", "", "ENx", ""], "EN", None)


def test_a_beginning_inside_a_failed_beginning_is_kept():
    given, rest, found = scan(["aab"], ["a", "a", "a", "b"])
    assert ("".join(given), rest, found) == ("a", "", "aab")


def reference_scan(stops, text):
    """Character by character: the text before the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_the_result_does_not_depend_on_the_pieces():
    rng = random.Random(1)
    for _ in range(3000):
        text = "".join(rng.choices("abc", k=rng.randrange(0, 14)))
        stops = ["".join(rng.choices("abc", k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
        cuts = sorted(rng.choices(range(len(text) + 1), k=3))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        given, rest, found = scan(stops, parts)
        assert ("".join(given) + rest, found) == reference_scan(stops, text), (text, stops, parts)


def test_the_printer_keeps_the_order_of_the_prompts(capsys):
    printer = Printer()
    printer.receive(StreamedText("b1", 1))
    printer.receive(StreamedText("a1", 0))
    assert capsys.readouterr().out == "a1"
    printer.end(1)
    printer.receive(StreamedText("c1", 2))
    printer.receive(StreamedText("a2", 0))
    printer.end(0)
    assert capsys.readouterr().out == "a2\nb1\nc1"
    printer.receive(StreamedText("c2", 2))
    printer.end(2)
    assert capsys.readouterr().out == "c2\n"


def test_the_printer_shows_control_codes_and_does_not_obey_them(capsys):
    Printer().receive(StreamedText("a\rb\x1b[2J\x9bc\td\ne"))
    assert capsys.readouterr().out == "a\ufffdb\ufffd[2J\ufffdc\td\ne"
