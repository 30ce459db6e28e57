"""Texts: the trimmed tower equals open_clip's to 1e-5, long texts are refused, the tokenizer's memory is bounded."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from clip_queue.shared.errors import BadInput, TextTooLong
from clip_queue.shared.models import CATALOGUE, parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import normalise
from clip_queue.worker.inference.clip_model import CHECKPOINTS, ClipModel, load
from clip_queue.worker.inference.text import TextTower, Tokenizer
from tests.checkpoints import tiny_checkpoint

TEXTS = ["a", "", "a photo of a cat", "東京 Größe 🙂", "one two three four five six seven eight", "<end_of_text> b"]
FP32 = Settings(device="cpu", precision="fp32")


def off(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest length of a difference of rows, in the row's own length."""
    return float((np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@torch.inference_mode()
def check_against_open_clip(clip: ClipModel, source: str, texts: list[str], within: float = 1e-5) -> None:
    """Alone and in one batch, features are those of ``encode_text`` at full length."""
    model, name = load(parse_model(f"m={source}") if "=" not in source else parse_model(source), None)
    tokens = open_clip.get_tokenizer(name)(texts, context_length=clip.tokenizer.context_length)
    expected = model.eval().encode_text(tokens).numpy()
    ours = [clip.tokenizer(text) for text in texts]
    alone = np.concatenate([clip.embed_texts([t]).result() for t in ours])
    together = clip.embed_texts(ours).result()
    assert off(together, expected) < within
    assert off(alone, expected) < within


@pytest.fixture(scope="module")
def emoji() -> ClipModel:
    return ClipModel(CATALOGUE["emoji-mini"], FP32)


def test_emoji_minis_trimmed_tower_is_exact(emoji: ClipModel) -> None:
    assert emoji.text_tower.trims
    check_against_open_clip(emoji, f"local-dir:{CHECKPOINTS / 'emoji-mini'}", TEXTS)


@pytest.mark.slow
def test_vit_b_32s_trimmed_tower_is_exact() -> None:
    clip = ClipModel(parse_model("m=ViT-B-32/random"), FP32)
    assert clip.text_tower.trims
    assert clip.tokenizer.context_length == 77
    check_against_open_clip(clip, "ViT-B-32/random", TEXTS[:4])


TOWERS: dict[str, tuple[dict[str, Any], bool]] = {
    "CLIP": ({}, True),
    "custom text": ({"custom_text": True}, True),
    "pooled at its end token": ({"custom_text": True, "text": {"pool_type": "eos", "eos_id": 49407}}, True),
    "no causal mask": ({"custom_text": True, "text": {"no_causal_mask": True, "pool_type": "last"}}, False),
    "a class token": ({"custom_text": True, "text": {"embed_cls": True}}, False),
    "pooled at the last place": ({"custom_text": True, "text": {"pool_type": "last"}}, False),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_trimmed_only_where_that_changes_nothing(tmp_path: Path, name: str) -> None:
    options, trims = TOWERS[name]
    source = f"local-dir:{tiny_checkpoint(tmp_path / 'tiny', **options)}"
    clip = ClipModel(parse_model(f"tiny={source}"), FP32)
    assert clip.text_tower.trims is trims
    assert (clip.text_tower.length(3, 16), clip.text_tower.length(16, 16)) == ((3, 16) if trims else (16, 16))
    check_against_open_clip(clip, source, TEXTS)


def test_another_tower_is_computed_by_encode_text_at_full_length() -> None:
    """Those of Hugging Face have no token embedding and no mask of their own."""
    seen: list[torch.Size] = []

    def encode_text(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.shape)
        return tokens.float()

    tower = TextTower(SimpleNamespace(text=SimpleNamespace(transformer=None, pooler=None), encode_text=encode_text))
    assert not tower.trims
    tower(torch.zeros((2, tower.length(3, 9)), dtype=torch.long))
    assert seen == [(2, 9)]


def test_models_of_the_same_weights_but_another_way_to_use_them_have_other_fingerprints(tmp_path: Path) -> None:
    """Weights alone do not tell QuickGELU from GELU, nor one mask or pooling from another."""
    custom: dict[str, Any] = {"custom_text": True}
    options = [custom, {**custom, "quick_gelu": True}, TOWERS["no causal mask"][0]]
    clips = [
        ClipModel(parse_model(f"m=local-dir:{tiny_checkpoint(tmp_path / str(n), **o)}"), FP32)
        for n, o in enumerate(options)
    ]
    assert len({clip.fingerprint for clip in clips}) == 3


def test_a_checkpoint_has_one_fingerprint_wherever_it_lies_and_another_at_another_precision(tmp_path: Path) -> None:
    here, there = (parse_model(f"m=local-dir:{tiny_checkpoint(tmp_path / d)}") for d in "ab")
    bf16 = ClipModel(here, Settings(device="cpu", precision="bf16"))
    assert ClipModel(here, FP32).fingerprint == ClipModel(there, FP32).fingerprint != bf16.fingerprint


def test_at_bf16_features_point_the_same_way() -> None:
    """The figure for bf16: a cosine with fp32 above 0.9995, for images and texts."""
    clips = [ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu", precision=p)) for p in ("fp32", "bf16")]
    pixels = list(np.random.default_rng(0).integers(0, 255, (4, *clips[0].image_size, 3), dtype=np.uint8))
    texts = [c.embed_texts([c.tokenizer(t) for t in TEXTS]).result() for c in clips]
    images = [c.embed_images(pixels).result() for c in clips]
    for exact, rough in (texts, images):
        assert rough.dtype == np.float32
        assert (normalise(exact) * normalise(rough)).sum(axis=1).min() > 0.9995


# The tokenizer


def test_tokens_are_those_of_open_clip_without_padding(emoji: ClipModel) -> None:
    reference = open_clip.get_tokenizer("ViT-B-32")
    for text in [*TEXTS, "CAPITALS and &amp; entities", "  spaces\n\tand more  "]:
        expected = reference([text], context_length=32)[0].numpy()
        tokens = emoji.tokenizer(text)
        np.testing.assert_array_equal(tokens, expected[: len(tokens)])
        assert not expected[len(tokens) :].any()


@pytest.mark.parametrize(("words", "fits"), [(30, True), (31, False), (500, False)])
def test_a_text_that_fills_the_context_fits_and_one_token_more_does_not(
    emoji: ClipModel, words: int, fits: bool
) -> None:
    text = "word " * words
    if fits:
        assert len(emoji.tokenizer(text)) == 32
        return
    with pytest.raises(
        TextTooLong, match=f"too long for the model context length: {words + 2} tokens, 32 fit. Shorten it."
    ):
        emoji.tokenizer(text)


def test_a_text_is_cut_as_open_clip_cuts_it(emoji: ClipModel) -> None:
    reference = open_clip.tokenizer.SimpleTokenizer(context_length=32)
    for text in ("word " * 500, "word " * 30, "word " * 31, "a dog"):
        expected = reference([text], context_length=32)[0].tolist()
        cut = emoji.tokenizer.cut(text).tolist()
        assert cut == expected[: len(cut)]
        assert not any(expected[len(cut) :])


def test_the_tokenizers_memory_is_bounded_and_forgetting_changes_no_token() -> None:
    inner = open_clip.tokenizer.SimpleTokenizer(context_length=77)
    tokenizer = Tokenizer(inner, 77, word_cache=100)
    before = [tokenizer(text).tolist() for text in TEXTS]
    for n in range(1000):
        tokenizer(f"{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10 % 10]}{'uvwxyzabcd'[n // 100]}qq")
        assert len(inner.encode.words) <= 100
    assert [tokenizer(text).tolist() for text in TEXTS] == before


def test_a_tokenizer_that_would_shorten_a_text_still_refuses_it() -> None:
    inner = open_clip.tokenizer.SimpleTokenizer(context_length=16, reduction_mask="simple")
    tokenizer = Tokenizer(inner, 16)
    assert tokenizer("a cat").tolist() == inner(["a cat"])[0][:4].tolist()
    with pytest.raises(TextTooLong):
        tokenizer("word " * 20)


def test_a_character_that_the_vocabulary_cannot_express_is_bad_input() -> None:
    class Incomplete(open_clip.tokenizer.SimpleTokenizer):  # type: ignore[misc]
        def encode(self, text: str) -> list[int]:
            raise KeyError(text)

    with pytest.raises(BadInput, match="Text input holds characters that cannot be tokenised"):
        Tokenizer(Incomplete(context_length=16), 16)("a")


def test_many_threads_share_a_tokenizer() -> None:
    tokenizer = Tokenizer(open_clip.tokenizer.SimpleTokenizer(context_length=77), 77, word_cache=20)
    texts = [f"some words of number {n} like {'abcde'[n % 5] * (n % 7)}zebra" for n in range(200)]
    expected = [tokenizer(t).tolist() for t in texts]
    wrong: list[str] = []

    def work(first: int) -> None:
        wrong.extend(t for t, e in list(zip(texts, expected, strict=True))[first:] if tokenizer(t).tolist() != e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
