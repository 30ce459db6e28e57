"""Texts for a step: names and keywords, in sentences, among words that mean nothing."""

import random
from functools import lru_cache

import numpy as np
import open_clip

from training.concepts import Concept
from training.templates import FILLERS, TRAINING

CONTEXT_LENGTH = 32
# Stands for every word that no name, keyword, sentence or filler of ours uses. Its embedding is copied
# to all those words' tokens when the model is exported, so any word a person types is one that was met.
# With a number behind it, it stands for the token of that dense number.
UNKNOWN = "\0"


def plural(words: str) -> str:
    """The regular English plural of the last word."""
    if not words or not words[-1].isalpha() or words.endswith("s"):
        return words
    if words.endswith(("x", "z", "ch", "sh")):
        return words + "es"
    if words.endswith("y") and words[-2:-1] not in tuple("aeiou"):
        return words[:-1] + "ies"
    return words + "s"


class Vocabulary:
    """The BPE tokens that our texts use, numbered densely; all others are number 0, the unknown word.

    known: int64 [K], the tokenizer's number of each dense number (entry 0 is some unknown token).
    """

    def __init__(self, texts: list[str]) -> None:
        self._tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
        self.start, self.end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        used = {self.start, self.end} | {token for text in texts for word in text.split() for token in self._bpe(word)}
        spare = next(token for token in range(self.start) if token not in used)
        self.known = np.array([spare, *sorted(used)])
        self._dense = {int(token): number for number, token in enumerate(self.known)}

    @lru_cache(maxsize=100_000)  # noqa: B019 (one vocabulary lives as long as the program)
    def _bpe(self, word: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(word))

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Dense token numbers int64 [B, L], cut to the longest text, and each text's end position int64 [B]."""
        rows = []
        for text in texts:
            row = [self._dense[self.start]]
            for word in text.split():
                row += (
                    [int(word[1:] or 0)]
                    if word.startswith(UNKNOWN)
                    else [self._dense.get(token, 0) for token in self._bpe(word)]
                )
            rows.append([*row[: CONTEXT_LENGTH - 1], self._dense[self.end]])
        tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for place, row in zip(tokens, rows, strict=True):
            place[: len(row)] = row
        return tokens, np.array([len(row) - 1 for row in rows])


class Texts:
    """Draws the texts of a step.

    strays: share of the words beside a name that are any token we know, such as part of another's name.
    rare_first: draw a keyword the more often, the fewer concepts share it.
    """

    def __init__(self, concepts: list[Concept], seed: int, strays: float = 0.0, rare_first: bool = False) -> None:
        self._strays, self._rare_first = strays, rare_first
        self._concepts = concepts
        self._random = random.Random(seed)
        self.keywords = sorted(
            {word for concept in concepts for word in concept.keywords + concept.aliases}
            | {concept.name for concept in concepts}
        )
        number = {word: i for i, word in enumerate(self.keywords)}
        self._of = [[number[word] for word in {*c.keywords, *c.aliases, c.name}] for c in concepts]
        self.means = np.zeros((len(self.keywords), len(concepts)), dtype=np.float32)  # keyword × concept
        for index, words in enumerate(self._of):
            self.means[words, index] = 1
        self._rarity = self.means.sum(axis=1) ** -0.5
        texts = [*self.keywords, *map(plural, self.keywords), *FILLERS, *self._sentences()]
        self.vocabulary = Vocabulary(texts)
        self._distractors = [word for word in self.keywords if " " not in word and word.isalpha()]

    @staticmethod
    def _sentences() -> list[str]:
        return [template.replace("{s}", "").replace("{}", "") for template in TRAINING]

    def names(self, concepts: np.ndarray) -> list[str]:
        """One text for each concept, built on its name or on an alias of its own."""
        draw = self._random
        texts = []
        for index in concepts:
            concept = self._concepts[index]
            name = concept.name
            if concept.aliases and draw.random() < 0.15:
                name = draw.choice(concept.aliases)
            elif draw.random() < 0.05:
                words = name.split()
                draw.shuffle(words)
                name = " ".join(words)
            texts.append(self.dress(name))
        return texts

    def keyword_texts(self, concepts: np.ndarray) -> tuple[list[str], np.ndarray]:
        """One text for each concept, of one keyword or two, and what they mean: float32 [B, concepts] of 0 and 1."""
        draw = self._random
        texts, meanings = [], []
        for index in concepts:
            own = self._of[index]
            count = min(len(own), 2 if draw.random() < 0.2 else 1)
            words = draw.choices(own, self._rarity[own], k=count) if self._rare_first else draw.sample(own, count)
            meanings.append(self.means[words].prod(axis=0))
            texts.append(self.dress(" ".join(self.keywords[word] for word in dict.fromkeys(words))))
        return texts, np.stack(meanings)

    def dress(self, name: str) -> str:
        """The name bare, in a sentence, or among words that mean nothing."""
        draw = self._random
        kind = draw.random()
        text = plural(name) if draw.random() < 0.05 else name
        if kind < 0.3:
            return text
        if kind < 0.75 or draw.random() < 0.5:
            template = draw.choice(TRAINING)
            text = template.replace("{s}", plural(name)).replace("{}", text)
        if kind >= 0.6:
            text = self._among_noise(text, name)
        return text

    def _among_noise(self, text: str, name: str) -> str:
        """Unknown and filler words before, after and between; now and then a thing named after the first."""
        draw = self._random
        before, found, after = text.partition(name)
        left, right = before.split(), after.split()
        middle = name.split() if found else []
        for _ in range(1 + min(int(draw.expovariate(0.3)), 14)):
            word = UNKNOWN if draw.random() < 0.65 else draw.choice(FILLERS)
            if self._strays and draw.random() < self._strays:
                word = f"{UNKNOWN}{draw.randint(1, len(self.vocabulary.known) - 3)}"  # the last two: start and end
            side = left if draw.random() < 0.6 else right
            side.insert(draw.randint(0, len(side)), word)
        if draw.random() < 0.08:
            right += [
                draw.choice(("with", "and", "in", "near", "on", "beside")),
                draw.choice(("a", "the", "some")),
                draw.choice(self._distractors),
            ]
        return " ".join([*left, *middle, *right])
