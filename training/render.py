"""Draw every style of every concept once, as 80 px RGBA, and keep the pixels in one file."""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from training.concepts import Concept, bare_code, icon_names, squeeze
from training.packages import FLUENT_3D, HELD_OUT, ICONIFY

SIZE = 80
STYLES = (*(package.folder.removeprefix("iconify-json-") for package in ICONIFY), "fluent-emoji-3d")
MONOCHROME = ("fluent-emoji-high-contrast", "emojione-monotone")


@dataclass(frozen=True)
class Images:
    """Drawings with what they show.

    pixels: uint8 [N, SIZE, SIZE, 4] RGBA; concept, style: int64 [N].
    """

    pixels: np.ndarray
    concept: np.ndarray
    style: np.ndarray


def training_images(concepts: list[Concept], folders: dict[str, Path], cache: Path) -> Images:
    """All drawings to train on; read from `cache` when it is there."""
    if not cache.exists():
        jobs = [
            job
            for style, package in enumerate(ICONIFY)
            for job in _iconify_jobs(style, folders[package.folder], concepts, _code_tables(folders))
        ]
        jobs += _fluent_3d_jobs(len(ICONIFY), folders[FLUENT_3D.folder], concepts)
        with ProcessPoolExecutor() as pool:
            pixels = np.stack(list(pool.map(_draw, (source for source, _, _ in jobs), chunksize=64)))
        concept, style = (np.array([job[i] for job in jobs], dtype=np.int64) for i in (1, 2))
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, pixels=pixels, concept=concept, style=style)
    with np.load(cache) as arrays:
        return Images(arrays["pixels"], arrays["concept"], arrays["style"])


def held_out_images(concepts: list[Concept], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The style that is never trained on: RGB on white, uint8 [M, 64, 64, 3], and concepts int64 [M]."""
    by_code = {concept.code: index for index, concept in enumerate(concepts)}
    entries = json.loads((folder / "emoji.json").read_text())
    pixels, owners = [], []
    for entry in entries:
        index = by_code.get(bare_code(entry["unified"]))
        if index is None or not entry["has_img_twitter"]:
            continue
        with Image.open(folder / "img/twitter/64" / entry["image"]) as image:
            pixels.append(on_white(image))
        owners.append(index)
    order = np.argsort(owners, kind="stable")
    return np.stack(pixels)[order], np.array(owners)[order]


def on_white(image: Image.Image) -> np.ndarray:
    """An RGBA image composited on white: uint8 [H, W, 3]."""
    image = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def held_out_folder(folders: dict[str, Path]) -> Path:
    """Where the held-out style was unpacked."""
    return folders[HELD_OUT.folder]


Job = tuple[str | Path, int, int]  # SVG text or path of a bitmap, concept, style


def _code_tables(folders: dict[str, Path]) -> list[dict[str, str]]:
    paths = (folders[package.folder] / "chars.json" for package in reversed(ICONIFY))
    return [json.loads(path.read_text()) for path in paths]


def _iconify_jobs(style: int, folder: Path, concepts: list[Concept], tables: list[dict]) -> Iterator[Job]:
    names = icon_names(concepts, tables)
    icons = json.loads((folder / "icons.json").read_text())
    drawings = dict(icons["icons"])
    for alias, entry in icons.get("aliases", {}).items():
        if set(entry) == {"parent"} and entry["parent"] in drawings:
            drawings.setdefault(alias, drawings[entry["parent"]])
    chosen: dict[int, str] = {}  # a concept's own name comes before its aliases
    for name in drawings:
        index = names.get(squeeze(name))
        if index is not None and (index not in chosen or squeeze(name) == squeeze(concepts[index].name)):
            chosen[index] = name
    for index, name in sorted(chosen.items()):
        icon = drawings[name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" color="#000">{icon["body"]}</svg>',
            index,
            style,
        )


def _fluent_3d_jobs(style: int, folder: Path, concepts: list[Concept]) -> Iterator[Job]:
    by_code = {concept.code: index for index, concept in enumerate(concepts)}
    for path in sorted((folder / "assets").glob("*.webp")):
        index = by_code.get(bare_code(path.stem))
        if index is not None:
            yield path, index, style


def _draw(source: str | Path) -> np.ndarray:
    import resvg_py

    if isinstance(source, Path):
        with Image.open(source) as image:
            return np.asarray(image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    png = resvg_py.svg_to_bytes(svg_string=source, width=SIZE, height=SIZE, skip_system_fonts=True)
    with Image.open(BytesIO(bytes(png))) as image:
        square = Image.new("RGBA", (SIZE, SIZE))
        square.paste(image.convert("RGBA"), ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        return np.asarray(square)
