"""Byte pair encoding: the tokens of open_clip, in a time that long words cannot stretch."""

from __future__ import annotations

import random
import time

import pytest
from open_clip.tokenizer import SimpleTokenizer

from clip_queue.worker.inference.bpe import REMEMBERED, clean_lower, quick_clean
from clip_queue.worker.inference.text import Tokenizer


@pytest.fixture(scope="module")
def plain() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def quick() -> SimpleTokenizer:
    inner = SimpleTokenizer()
    Tokenizer(inner, 77)
    return inner


def words() -> list[str]:
    rng = random.Random(4)
    alphabets = [
        "ab",
        "abcdefghijklmnopqrstuvwxyz",
        "aeiourstln",
        "日本語の文字列",
        "üöäß€é",
        "0123456789",
        "😀🎉❤️",
        "!?.,-",
    ]
    made = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for alphabet in alphabets for _ in range(60)]
    return [
        *made,
        "a",
        "aa",
        "aaa",
        "aaaaaaaaaaaaa",
        "internationalisation",
        "it's",
        "the quick brown fox",
        "<|endoftext|>",
    ]


def test_the_tokens_are_those_of_open_clip(plain: SimpleTokenizer, quick: SimpleTokenizer) -> None:
    for word in words():
        assert quick.encode(word) == plain.encode(word), word


def test_long_words_take_no_longer_than_others(quick: SimpleTokenizer) -> None:
    for text in ("".join(random.Random(1).choices("abcdefghijklmnop", k=2000)), "日本語の文字列" * 285):
        began = time.process_time()
        quick.encode(text)
        assert time.process_time() - began < 0.5  # open_clip: seconds


def test_long_words_are_not_remembered(quick: SimpleTokenizer) -> None:
    before = len(quick.encode.words)
    quick.encode("z" * (REMEMBERED + 1))
    assert len(quick.encode.words) == before
    quick.encode("zxq" * 5)
    assert len(quick.encode.words) == before + 1


def test_a_text_of_printable_ascii_is_cleaned_as_open_clip_cleans_it() -> None:
    rng = random.Random(5)
    printable = "".join(map(chr, range(0x20, 0x7F)))
    for _ in range(3000):
        text = "".join(rng.choices(printable + "   <>'\"&;#", k=rng.randint(0, 80)))
        assert quick_clean(text) == clean_lower(text), text


@pytest.mark.parametrize(
    "text",
    [
        "A &amp;lt; B &AMP C &#65;", "“curly” ‘quotes’", "ﬁ ligature", "Ｆｕｌｌ width", "l’avion", "schÃ¶n",
        "a\r\nb\tc", "\x1b[31mred\x1b[0m", "a\x00b\x7fc", " \u00a0 no break \u3000 ", "İ I ı", "e\u0301",
        "<b>bold</b> & more", "<start_of_text> x <end_of_text>", "<START_OF_TEXT>",
        "don't I'LL we've it's", "", " ", "\u2028line", "\ud83d",
    ],
)  # fmt: skip
def test_what_is_not_ordinary_is_mended_as_open_clip_mends_it(
    plain: SimpleTokenizer, quick: SimpleTokenizer, text: str
) -> None:
    for _ in range(2):  # the second time from memory
        assert quick.encode(text) == plain.encode(text)


def test_a_tokenizer_that_cleans_otherwise_keeps_its_way() -> None:
    for clean in ("whitespace", "canonicalize"):
        plain, quick = SimpleTokenizer(clean=clean), SimpleTokenizer(clean=clean)
        Tokenizer(quick, 77)
        for text in ("Capitals, and  COMMAS.", "a_b &amp; c"):
            assert quick.encode(text) == plain.encode(text)
