"""Names of models: the catalogue, the models of a setting, and unknown models."""

from __future__ import annotations

import pytest

from clip_queue.shared.errors import UnknownModel
from clip_queue.shared.models import (
    ALIASES,
    CATALOGUE,
    NOTICES,
    ModelSpec,
    check_known,
    parse_aliases,
    parse_model,
    parse_models,
)

NINE = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336px"]


def test_the_nine_names_of_the_original_are_openais_weights_with_their_activation() -> None:
    for name in NINE:
        architecture = name.removesuffix("px")
        assert CATALOGUE[name] == ModelSpec(name, f"{architecture}-quickgelu/openai")
    assert CATALOGUE.keys() - set(NINE) == {"emoji-mini"}


def test_every_source_of_the_catalogue_is_an_architecture_that_open_clip_has() -> None:
    import open_clip

    pairs = set(open_clip.list_pretrained())
    for name in NINE:
        assert tuple(CATALOGUE[name].source.split("/")) in pairs


def test_the_shipped_model_has_a_warning() -> None:
    assert "nothing of photographs" in NOTICES["emoji-mini"]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("mine=ViT-B-32/laion2b_s34b_b79k", "ViT-B-32/laion2b_s34b_b79k"),
        ("mine=hf-hub:org/repo", "hf-hub:org/repo"),
        ("mine=local-dir:/models/with=sign", "local-dir:/models/with=sign"),
        ("mine=ViT-B-32/random", "ViT-B-32/random"),
    ],
)
def test_a_source_may_be_served_under_a_name_of_its_own(text: str, source: str) -> None:
    assert parse_model(text) == ModelSpec("mine", source)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ViT-Q-99", "unknown model 'ViT-Q-99'"),
        ("", "unknown model ''"),
        ("=ViT-B-32/openai", "must be a word"),
        ("two words=ViT-B-32/openai", "must be a word"),
        ("a,b=ViT-B-32/openai", "must be a word"),
        ("a\x06\x16b=ViT-B-32/openai", "must be a word"),
        ("a" * 201 + "=ViT-B-32/openai", "must be a word"),
        ("mine=ViT-B-32", "must be ARCHITECTURE/TAG"),
        ("mine=", "must be ARCHITECTURE/TAG"),
    ],
)
def test_a_wrong_setting_says_what_to_write_instead(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"must|use") as error:
        parse_model(text)
    assert says in str(error.value)


def test_each_message_about_a_setting_is_complete() -> None:
    def message(text: str) -> str:
        with pytest.raises(ValueError, match=r"model|source") as error:
            parse_model(text)
        return str(error.value)

    known = ", ".join(CATALOGUE)
    assert message("ViT-Q") == (
        f"unknown model 'ViT-Q': use one of {known}, or NAME=SOURCE, as in my-b32=ViT-B-32/laion2b_s34b_b79k"
    )
    assert message("a,b=c/d") == "model name 'a,b' in 'a,b=c/d' must be a word of visible characters without ','"
    assert message("a=b") == "source 'b' of 'a' must be ARCHITECTURE/TAG, hf-hub:ORG/REPO or local-dir:/PATH"


def test_each_of_the_nine_has_a_usual_name_elsewhere() -> None:
    assert set(ALIASES.values()) == set(NINE)
    assert not ALIASES.keys() & CATALOGUE.keys()
    assert parse_model("openai/clip-vit-base-patch32") == CATALOGUE["ViT-B-32"]
    assert list(parse_models(["ViT-B/16", "ViT-L/14@336px"])) == ["ViT-B-16", "ViT-L-14-336px"]


@pytest.mark.parametrize("name", ["openai/clip-vit", "a:b", "org/model:tag", "ViT-B/32", "a.b:interactive"])
def test_a_name_may_hold_what_names_elsewhere_hold(name: str) -> None:
    assert parse_model(f"{name}=ViT-B-32/openai") == ModelSpec(name, "ViT-B-32/openai")


def test_aliases_are_read_from_the_setting() -> None:
    assert parse_aliases(["a/b:c=ViT-B-16", "text-embedding-3-small=mine"]) == {
        "a/b:c": "ViT-B-16",
        "text-embedding-3-small": "mine",
    }
    assert parse_aliases(["a=b", "a=b"]) == {"a": "b"}
    for wrong, says in (("a", "must be ALIAS=MODEL"), ("=b", "must be a word"), ("a b=c", "must be a word")):
        with pytest.raises(ValueError, match=says):
            parse_aliases([wrong])
    with pytest.raises(ValueError, match="stands there twice"):
        parse_aliases(["a=b", "a=c"])


def test_the_order_of_the_setting_stays_and_the_first_is_first() -> None:
    assert list(parse_models(["ViT-B-32", "mine=a/b", "emoji-mini"])) == ["ViT-B-32", "mine", "emoji-mini"]


def test_what_is_neither_in_the_catalogue_nor_served_is_unknown() -> None:
    check_known("ViT-B-16")
    check_known("mine", ["theirs"], {"mine": 1})
    with pytest.raises(UnknownModel) as error:
        check_known("x" * 500, ["mine"])
    assert error.value.status == 404
    assert len(error.value.message) < 150, "a name of any length is not sent back whole"
