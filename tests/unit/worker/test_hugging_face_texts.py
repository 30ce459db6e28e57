"""Models whose tokenizer is Hugging Face's: what fits is tokenised as open_clip does it, what does not is refused."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from tokenizers import Tokenizer as Vocabulary
from tokenizers import models, pre_tokenizers, processors

from clip_queue.shared.errors import TextTooLong
from clip_queue.shared.models import ModelSpec
from clip_queue.shared.settings import Settings
from clip_queue.shared.startup import CannotWork
from clip_queue.worker.inference.clip_model import ClipModel
from tests.checkpoints import tiny_checkpoint

WORDS = [f"w{i}" for i in range(60)]
FITS = 16  # tokens
# Special tokens in the order of their ids, the template of a text, the tokenizer's names for them, open_clip's options.
KINDS: dict[str, tuple[list[str], str, dict[str, str], dict[str, Any]]] = {
    "SigLIP": (
        ["<none>", "</s>", "<unk>"],
        "$A </s>",
        {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"},
        {"tokenizer_kwargs": {"clean": "canonicalize"}},
    ),
    "CLIPA": (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "[CLS] $A [SEP]",
        {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
        {"tokenizer_kwargs": {"strip_sep_token": True}},
    ),
    "XLM-R": (
        ["<s>", "<pad>", "</s>", "<unk>"],
        "<s> $A </s>",
        {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        {},
    ),
    "CLIPS": (
        ["[PAD]", "[UNK]", "[CLS]", "[BOS]", "[EOS]"],
        "$A",
        {"pad_token": "[PAD]", "cls_token": "[CLS]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"},
        {"tokenizer_mode": "clips"},
    ),
}
SPECIAL = {"SigLIP": 1, "CLIPA": 2, "XLM-R": 2, "CLIPS": 3}  # tokens of an empty text


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    kind: str = request.param
    special, template, names, options = KINDS[kind]
    folder = tmp_path_factory.mktemp(kind)
    ids = {word: i for i, word in enumerate((*special, *WORDS))}
    unknown = names["unk_token"]
    vocabulary = Vocabulary(models.WordLevel(ids, unk_token=unknown))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(token, ids[token]) for token in special if token in template]
    vocabulary.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary, **names).save_pretrained(folder)
    text = {"vocab_size": 99, "hf_tokenizer_name": "x/y", "no_causal_mask": True, "pool_type": "last", **options}
    tiny_checkpoint(folder, text=text, custom_text=True)
    return kind, folder


@pytest.fixture(scope="module")
def clip(made: tuple[str, Path]) -> ClipModel:
    return ClipModel(ModelSpec("x", f"local-dir:{made[1]}"), Settings(device="cpu", precision="fp32"))


def test_what_fits_is_open_clips_and_what_does_not_is_refused(made: tuple[str, Path], clip: ClipModel) -> None:
    kind, folder = made
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    most = FITS - SPECIAL[kind]
    for number in (0, 1, 2, most - 1, most, most + 1, most + 2, 40, 200):
        text = " ".join((WORDS * 4)[:number])
        with torch.inference_mode():
            expected = model.encode_text(tokenizer([text])).numpy()
        if number > most:
            with pytest.raises(TextTooLong, match=rf"{number + SPECIAL[kind]} tokens, {FITS} fit"):
                clip.tokenizer(text)
        else:
            np.testing.assert_allclose(clip.embed_texts([clip.tokenizer(text)]).result(), expected, atol=1e-5)
        np.testing.assert_allclose(clip.embed_texts([clip.tokenizer.cut(text)]).result(), expected, atol=1e-5)


def test_a_text_that_is_cut_disturbs_no_other_in_another_thread(clip: ClipModel) -> None:
    short, long = "w1 w2 w3", " ".join(WORDS)
    expected, cut = clip.tokenizer(short).tolist(), clip.tokenizer.cut(long).tolist()

    def encode(turn: int) -> bool:
        if turn % 3 == 0:
            return clip.tokenizer.cut(long).tolist() == cut
        if turn % 3 == 1:
            return clip.tokenizer(short).tolist() == expected
        with pytest.raises(TextTooLong):
            clip.tokenizer(long)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(encode, range(1500)))


def test_without_the_library_a_line_says_what_to_install(
    made: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CannotWork, match=r"its texts need transformers: pip install 'clip-queue\[hf\]'$"):
        ClipModel(ModelSpec("x", f"local-dir:{made[1]}"), Settings(device="cpu", precision="fp32"))


def test_the_tokenizer_of_a_cached_repository_is_found_where_the_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def get(name: str, cache_dir: str | None = None) -> Any:
        asked.append((name, cache_dir))
        return open_clip.tokenizer.SimpleTokenizer(context_length=FITS)

    folder = tiny_checkpoint(tmp_path / "model")
    monkeypatch.setattr(open_clip, "get_tokenizer", get)
    ClipModel(ModelSpec("x", f"local-dir:{folder}"), Settings(device="cpu", cache_dir=tmp_path))
    assert asked == [(f"local-dir:{folder}", str(tmp_path))]
    assert json.loads((folder / "open_clip_config.json").read_text())
