"""Text for CLIP: tokens that are refused, not cut, when too long; a tower that computes no padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import text_global_pool

from clip_queue.shared.errors import BadInput, TextTooLong

WORD_CACHE = 50_000  # words whose byte pairs the tokenizer may remember: its own dictionary has no limit


class Tokenizer:
    """open_clip's tokenizer of a model, for many threads."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._simple = isinstance(tokenizer, SimpleTokenizer)
        self.context_length = context_length
        self.pad = 0 if self._simple else int(getattr(tokenizer.tokenizer, "pad_token_id", 0) or 0)

    def __call__(self, text: str) -> NDArray[np.int64]:
        """The text's tokens (length,), int64, with start and end, without padding.

        Raises:
            TextTooLong: more tokens than the model's context length.
        """
        tokens = self._encode(text)
        if len(tokens) > self.context_length:
            raise TextTooLong(
                "Text input is too long for the model context length: "
                f"{len(tokens)} tokens, {self.context_length} fit. Shorten it."
            )
        return np.asarray(tokens, dtype=np.int64)

    def _encode(self, text: str) -> list[int]:
        if not self._simple:
            return self._encode_other(text)
        t = self._tokenizer
        if len(t.cache) > WORD_CACHE:
            t.cache = {t.decoder[i]: t.decoder[i] for i in t.all_special_ids}  # these are no words to be split
        try:
            body = t.encode(text)  # a reduction mask says how to shorten; what is too long is refused here
        except KeyError as error:  # a lone surrogate and its like
            raise BadInput("Text input holds characters that cannot be tokenised.") from error
        return [t.sot_token_id, *body, t.eot_token_id]

    def _encode_other(self, text: str) -> list[int]:
        """A Hugging Face tokenizer: asked for one token more than fits, so that too long shows."""
        ids: list[int] = self._tokenizer(text, context_length=self.context_length + 1)[0].tolist()
        while len(ids) > 1 and ids[-1] == self.pad:
            ids.pop()
        return ids


class TextTower:
    """``encode_text`` cut to the batch's longest text.

    CLIP's text tower is causal and pools at the end token, so what follows that token changes nothing. open_clip
    computes all 77 places for every text; here only those that some text of the batch fills. Towers of another
    make (bidirectional, pooled elsewhere, Hugging Face's) go through open_clip's own function, whole.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        tower = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
        causal = getattr(tower, "attn_mask", None) is not None
        pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
        plain = hasattr(tower, "token_embedding") and getattr(tower, "cls_emb", None) is None
        self._tower = tower if causal and plain and pool in ("argmax", "eos") else None
        self._pool = pool

    @property
    def trims(self) -> bool:
        return self._tower is not None

    def length(self, longest: int, context_length: int) -> int:
        """Places that a batch is padded to."""
        return longest if self.trims else context_length

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Raw text features (n, dimension) of tokens (n, length), int64."""
        tower = self._tower
        if tower is None:
            out: torch.Tensor = self._model.encode_text(tokens)
            return out
        length = tokens.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x)
        eos = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
        x = text_global_pool(x, tokens, self._pool, eos_token_id=eos)
        projection = tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
        features: torch.Tensor = x
        return features
