"""The concepts: one for each emoji that is no flag, component or skin tone, with its words."""

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT_GROUPS = (None, 2, 9)  # regional letters, components, flags
SHORTCODES = ("cldr", "emojibase", "github", "iamcal", "joypixels")
# Drawings that mean something else in the mirror.
CHIRAL_SUBGROUPS = {
    "time",
    "arrow",
    "keycap",
    "alphanum",
    "av-symbol",
    "math",
    "punctuation",
    "currency",
    "transport-sign",
    "hand-single-finger",
    "zodiac",
    "other-symbol",
}
CHIRAL_WORDS = {
    "left",
    "leftwards",
    "right",
    "rightwards",
    "east",
    "west",
    "first",
    "last",
    "waxing",
    "waning",
    "slice",
    "button",
    "mark",
    "book",
    "calendar",
    "sign",
}


@dataclass(frozen=True)
class Concept:
    """What one emoji is called."""

    code: str  # code points in hex, joined by hyphens, without variation selectors
    name: str
    aliases: tuple[str, ...]  # other names, that belong to this concept alone
    tags: frozenset[str]  # the words' package's keywords for it, which others may share
    keywords: tuple[str, ...]  # these, and words of its group and names that others share
    mirrors: bool  # whether its mirror image still means the same


def bare_code(code: str) -> str:
    """The code points in lower case, without the variation selectors that packages disagree on."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def squeeze(text: str) -> str:
    """Letters and digits alone: the form in which packages' names are compared."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text.lower()))


def plain(text: str) -> str:
    """A name as a person types it: lower case, straight apostrophes, no colons or underscores."""
    text = text.lower().replace("’", "'").replace("_", " ").replace("“", "").replace("”", "")
    return re.sub(r"\s+", " ", re.sub(r"[:,()!]", " ", text)).strip()


def read_concepts(folder: Path) -> list[Concept]:
    """All concepts from the unpacked words' package, in its order."""
    emojis = [e for e in json.loads((folder / "en/data.json").read_text()) if e.get("group") not in LEFT_OUT_GROUPS]
    subgroups = json.loads((folder / "meta/groups.json").read_text())["subgroups"]
    shortcodes = [json.loads((folder / f"en/shortcodes/{s}.json").read_text()) for s in SHORTCODES]

    other_names = [_other_names(e, shortcodes) for e in emojis]
    owners = Counter(name for names in other_names for name in names) + Counter(plain(e["label"]) for e in emojis)
    concepts = []
    for emoji, names in zip(emojis, other_names, strict=True):
        name = plain(emoji["label"])
        subgroup = subgroups[str(emoji["subgroup"])]
        tags = frozenset(plain(tag) for tag in emoji.get("tags", ())) - {""}
        words = [*tags]
        words += [word for word in subgroup.split("-") if word not in ("other", "symbol", "alphanum")]
        words += [word for word in names if owners[word] > 1]
        concepts.append(
            Concept(
                code=bare_code(emoji["hexcode"]),
                name=name,
                aliases=tuple(sorted(n for n in names if owners[n] == 1 and n != name)),
                tags=tags,
                keywords=tuple(sorted(set(words))),
                mirrors=subgroup not in CHIRAL_SUBGROUPS and not CHIRAL_WORDS & set(name.split()),
            )
        )
    return concepts


def icon_names(concepts: list[Concept], code_tables: list[dict[str, str]]) -> dict[str, int]:
    """Squeezed drawing name → index of its concept, from names, aliases and packages' code tables.

    `code_tables` map code points to a drawing's name; a name that two concepts claim is left out
    unless it is the proper name of one.
    """
    claims: dict[str, set[int]] = {}
    by_code = {concept.code: index for index, concept in enumerate(concepts)}
    for index, concept in enumerate(concepts):
        for name in (*concept.aliases, *([] if "-" in concept.code else [_unicode_name(concept.code)])):
            claims.setdefault(squeeze(name), set()).add(index)
    names = {name: next(iter(owners)) for name, owners in claims.items() if len(owners) == 1}
    for table in code_tables:
        for code, name in table.items():
            if bare_code(code) in by_code:
                names[squeeze(name)] = by_code[bare_code(code)]
    names |= {squeeze(concept.name): index for index, concept in enumerate(concepts)}
    names.pop("", None)
    return names


def _other_names(emoji: dict, shortcodes: list[dict]) -> set[str]:
    names = set()
    for table in shortcodes:
        found = table.get(emoji["hexcode"], [])
        names.update(plain(code) for code in ([found] if isinstance(found, str) else found))
    if "-" not in bare_code(emoji["hexcode"]):
        names.add(plain(_unicode_name(bare_code(emoji["hexcode"]))))
    return {name for name in names if len(name) > 1 and any(map(str.isalnum, name))}


def _unicode_name(code: str) -> str:
    return unicodedata.name(chr(int(code, 16)), "").lower()
