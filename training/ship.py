"""`python -m training.ship`: the held-out images that go with the project, and the checkpoint's figures on them.

The evaluation set is one contact sheet of tiles and a JSON file that says what each tile shows; the samples
of the demonstration are single files. All are RGB on white, as the service drops an alpha channel.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from training import packages
from training.concepts import Concept, read_concepts
from training.evaluate import among_random_names, cosines, keyword_first_hit, top_k
from training.measure import Loaded, keyword_table, percent
from training.render import held_out_folder, held_out_images
from training.templates import HELD_OUT

ROOT = Path(__file__).parent.parent
COUNT, COLUMNS, TILE = 400, 20, 64
SEED = 0
ATTRIBUTION = (
    "Twemoji graphics, copyright Twitter, Inc. and other contributors, CC-BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), from the package emoji-datasource-twitter 16.0.0; "
    "composited on white. Names and keywords: emojibase-data 17.0.0, copyright Miles Johnson, MIT."
)
# The demonstration's word for an image → the name of what it shows.
SAMPLES = {
    "dog": "dog face",
    "cat": "cat face",
    "whale": "spouting whale",
    "sunflower": "sunflower",
    "banana": "banana",
    "pizza": "pizza",
    "rocket": "rocket",
    "bicycle": "bicycle",
    "guitar": "guitar",
    "umbrella": "umbrella",
    "ghost": "ghost",
    "trophy": "trophy",
}


def evaluation_set(concepts: list[Concept], pixels: np.ndarray, shown: np.ndarray, folder: Path) -> None:
    """Write `COUNT` random held-out images, none of them a sample, as sheet.png and eval.json."""
    sampled = set(SAMPLES.values())
    usable = [i for i, index in enumerate(shown) if concepts[index].name not in sampled]
    chosen = np.sort(np.random.default_rng(SEED).choice(usable, COUNT, replace=False))
    tiles = pixels[chosen].reshape(-1, COLUMNS, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiles.reshape(-1, COLUMNS * TILE, 3)).save(folder / "sheet.png", optimize=True)
    entries = [
        {
            "name": concepts[index].name,
            "shown": int(index),
            "keywords": sorted(concepts[index].tags),
            "column": place % COLUMNS,
            "row": place // COLUMNS,
        }
        for place, index in enumerate(shown[chosen])
    ]
    write_json(
        folder / "eval.json",
        {
            "attribution": ATTRIBUTION,
            "sheet": "sheet.png",
            "tile": TILE,
            "figures": figures_of(folder, [concept.name for concept in concepts], entries, concepts),
            "held_out_templates": HELD_OUT,
            "names": [concept.name for concept in concepts],
            "pictures": entries,
        },
    )


def figures_of(folder: Path, names: list[str], entries: list[dict], concepts: list[Concept]) -> dict[str, float]:
    """What the committed checkpoint gives on these images, read back from the sheet; percentages."""
    model = Loaded(ROOT / "worker/checkpoints/emoji-mini")
    sheet = np.asarray(Image.open(folder / "sheet.png"))
    images = model.images(
        np.stack(
            [
                sheet[p["row"] * TILE : (p["row"] + 1) * TILE, p["column"] * TILE : (p["column"] + 1) * TILE]
                for p in entries
            ]
        )
    )
    shown = np.array([p["shown"] for p in entries])
    bare = model.texts(names)
    keywords, fits = keyword_table(concepts, shown)
    held_out = [top_k(images, model.texts([t.replace("{}", name) for name in names]), shown) for t in HELD_OUT]
    return {
        "top_1": percent(top_k(images, bare, shown)),
        "top_5": percent(top_k(images, bare, shown, 5)),
        "among_10_random_names": percent(among_random_names(images, bare, shown)),
        "keyword_first_hit": percent(keyword_first_hit(model.texts(keywords), images, fits)),
        "held_out_templates_mean_top_1": percent(float(np.mean(held_out))),
        "held_out_templates_worst_top_1": percent(min(held_out)),
    }


def samples(concepts: list[Concept], pixels: np.ndarray, shown: np.ndarray, folder: Path) -> None:
    """Write the demonstration's images, one file each, with samples.json."""
    folder.mkdir(parents=True, exist_ok=True)
    place = {concepts[index].name: i for i, index in enumerate(shown)}
    for word, name in SAMPLES.items():
        Image.fromarray(pixels[place[name]]).save(folder / f"{word}.png", optimize=True)
    write_json(
        folder / "samples.json",
        [{"file": f"{word}.png", "name": word, "prompt": f"a picture of a {word}"} for word in SAMPLES],
    )
    (folder / "ATTRIBUTION.md").write_text(f"{ATTRIBUTION}\n")
    model = Loaded(ROOT / "worker/checkpoints/emoji-mini")
    scores = cosines(
        model.images(np.stack([pixels[place[name]] for name in SAMPLES.values()])), model.texts(list(SAMPLES))
    )
    right = int((scores.argmax(axis=1) == np.arange(len(SAMPLES))).sum())
    print(f"samples nearest to their own word: {right} of {len(SAMPLES)}")


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":"), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.ship", description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/training"))
    options = parser.parse_args()
    folders = {p.folder: packages.fetch(p, options.work_dir) for p in (packages.WORDS, packages.HELD_OUT)}
    concepts = read_concepts(folders[packages.WORDS.folder])
    pixels, shown = held_out_images(concepts, held_out_folder(folders))
    evaluation_set(concepts, pixels, shown, ROOT / "tests/data/emoji-eval")
    samples(concepts, pixels, shown, ROOT / "cli/samples")
    print((ROOT / "tests/data/emoji-eval/eval.json").read_text()[:800])


if __name__ == "__main__":
    main()
