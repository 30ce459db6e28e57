"""Byte pair encoding: the tokens of open_clip, in a time that long words cannot stretch."""

from __future__ import annotations

import random
import time

import pytest
from open_clip.tokenizer import SimpleTokenizer

from clip_queue.worker.inference.bpe import REMEMBERED
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
    before = len(quick.cache)
    quick.encode("z" * (REMEMBERED + 1))
    assert len(quick.cache) == before
    quick.encode("zxq" * 5)
    assert len(quick.cache) == before + 1
