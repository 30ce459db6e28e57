"""``python -m training.drawings FOLDER``: the 400 held-out drawings with captions, a dataset to try bulk on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

HELD_OUT = Path(__file__).parent.parent / "tests" / "data" / "emoji-eval"


def main(folder: Path) -> None:
    about = json.loads((HELD_OUT / "eval.json").read_text())
    sheet, tile = Image.open(HELD_OUT / about["sheet"]), about["tile"]
    folder.mkdir(parents=True, exist_ok=True)
    for number, drawing in enumerate(about["pictures"]):
        left, top = drawing["column"] * tile, drawing["row"] * tile
        stem = folder / f"{number:03} {drawing['name'].replace('/', '-')}"
        sheet.crop((left, top, left + tile, top + tile)).save(stem.with_name(f"{stem.name}.png"))
        stem.with_name(f"{stem.name}.txt").write_text(drawing["name"])
    print(f"{len(about['pictures'])} drawings with captions in {folder}/")
    print(about["attribution"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
