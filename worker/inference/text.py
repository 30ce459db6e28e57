"""Tokenizer and text tower. A text that is too long is refused, not cut, and the tower computes no padding."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from clip_queue.shared.errors import BadInput, TextTooLong
from clip_queue.worker.inference.blocks import Blocks
from clip_queue.worker.inference.bpe import QuickEncoder
from clip_queue.worker.inference.libraries import SimpleTokenizer, get_clean_fn, text_global_pool
from clip_queue.worker.inference.linear import Linear

_OWN_TOKENS = {"clips": 3}  # special tokens that open_clip adds itself, by its ``tokenizer_mode``
WORD_CACHE = 50_000  # most words that the tokenizer remembers; by itself it has no limit


class Tokenizer:
    """open_clip's tokenizer of a model, for many threads.

    ``word_cache`` is the most words whose tokens are remembered. :attr:`pad` is the token that fills up a batch.
    """

    def __init__(self, tokenizer: Any, context_length: int, *, word_cache: int = WORD_CACHE) -> None:
        self._tokenizer = tokenizer
        self._simple = isinstance(tokenizer, SimpleTokenizer)
        if self._simple and type(tokenizer).encode is SimpleTokenizer.encode:
            tokenizer.encode = QuickEncoder(tokenizer, word_cache)
        self._one_at_a_time = threading.Lock()  # a Hugging Face tokenizer keeps how it cuts and pads
        self.context_length = context_length
        self.pad = 0 if self._simple else int(getattr(tokenizer.tokenizer, "pad_token_id", 0) or 0)

    def __call__(self, text: str) -> NDArray[np.int64]:
        """The tokens of a text (length,), int64, with the start and end tokens, without padding.

        Where the end has the token of the padding it is left out, too.

        Raises:
            TextTooLong: there are more tokens than the model's context length.
            BadInput: the text has a character that the vocabulary cannot express.
        """
        tokens = self._encode(text) if self._simple else None
        length = self._length_other(text) if tokens is None else len(tokens)
        if length > self.context_length:
            raise TextTooLong(
                "Text input is too long for the model context length: "
                f"{length} tokens, {self.context_length} fit. Shorten it."
            )
        return self._cut_other(text) if tokens is None else np.asarray(tokens, dtype=np.int64)

    def cut(self, text: str) -> NDArray[np.int64]:
        """The tokens of a text, of a longer one as many as fit, as open_clip cuts it. Raises :class:`BadInput`."""
        if not self._simple:
            return self._cut_other(text)
        tokens = self._encode(text)
        if len(tokens) > self.context_length:
            tokens = [*tokens[: self.context_length - 1], tokens[-1]]
        return np.asarray(tokens, dtype=np.int64)

    def _encode(self, text: str) -> list[int]:
        t = self._tokenizer
        try:
            body = t.encode(text)  # not __call__, which would shorten the text
        except KeyError as error:
            raise BadInput("Text input holds characters that cannot be tokenised.") from error
        return [t.sot_token_id, *body, t.eot_token_id]

    def _length_other(self, text: str) -> int:
        """How many tokens a Hugging Face tokenizer makes of a whole text, with the special ones.

        What open_clip makes of it does not show that: it is cut, its end may be the token of the padding, and some
        special tokens are blanked.
        """
        t = self._tokenizer
        clean = getattr(t, "clean_fn", None) or get_clean_fn("canonicalize")  # as open_clip's SigLipTokenizer
        own = _OWN_TOKENS.get(getattr(t, "tokenizer_mode", ""), 0)  # added by open_clip
        with self._one_at_a_time:
            ids = t.tokenizer(clean(text), add_special_tokens=not own, truncation=False, padding=False)["input_ids"]
        return len(ids) + own

    def _cut_other(self, text: str) -> NDArray[np.int64]:
        """What open_clip makes of a text by a Hugging Face tokenizer, without its padding."""
        with self._one_at_a_time:
            ids = self._tokenizer(text, context_length=self.context_length)[0].tolist()
        while len(ids) > 1 and ids[-1] == self.pad:
            ids.pop()
        return np.asarray(ids, dtype=np.int64)


class TextTower:
    """``encode_text`` that is trimmed to the longest text of the batch.

    CLIP's text tower is causal and pools at the end token, so the places after that token change nothing. open_clip
    computes all 77 places of every text; this class computes only those that some text of the batch fills. Other
    towers (bidirectional, with another pooling, or of Hugging Face) are computed by open_clip at full length.
    """

    def __init__(self, model: Any, layer: type[Linear] = Linear, raw: Mapping[str, bool] | None = None) -> None:
        """``raw``: what ``encode_text`` is told for features that are not normalised, where it must be told."""
        self._model, self._raw = model, raw or {}
        tower = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
        causal = getattr(tower, "attn_mask", None) is not None
        pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
        plain = hasattr(tower, "token_embedding") and getattr(tower, "cls_emb", None) is None
        self._tower = tower if causal and plain and pool in ("argmax", "eos") else None
        self._pool = pool
        self._blocks: Blocks | None = None
        if self._tower is not None and (blocks := Blocks.of(self._tower.transformer, layer)):
            self._blocks = self._tower.transformer = blocks  # nothing keeps the weights in another order

    @property
    def trims(self) -> bool:
        """Whether batches are trimmed."""
        return self._tower is not None

    def length(self, longest: int, context_length: int) -> int:
        """The length to which a batch is padded, given the length of its longest text."""
        return longest if self.trims else context_length

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """The raw features (n, dimension) of tokens (n, length), int64."""
        tower = self._tower
        if tower is None:
            out: torch.Tensor = self._model.encode_text(tokens, **self._raw)
            return out
        length = tokens.shape[1]
        embedding = tower.token_embedding.weight
        x = functional.embedding(tokens, embedding) + tower.positional_embedding[:length]
        eos: Any = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
        if self._blocks is not None:
            ends = tokens.argmax(-1) if self._pool == "argmax" else tokens.eq(eos).int().argmax(-1)
            x = tower.ln_final(self._blocks(x, ends)[:, 0])
        else:
            x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
            x = text_global_pool(x, tokens, self._pool, eos_token_id=eos)
        projection = tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
        features: torch.Tensor = x
        return features
