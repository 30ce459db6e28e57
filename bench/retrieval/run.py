"""clip-retrieval's ``inference`` over local files, timed, with the models that clip-queue serves.

It runs in an environment of its own, made from the requirements beside it, and imports nothing of clip-queue. All but
the loading of the model is clip-retrieval's: reading, batches, normalising, writing. Its ``open_clip:`` loader splits
the name at ``/`` and knows of a checkpoint's preprocessing only from the model hub; here that loader also takes

- ``local-dir:FOLDER``: ``open_clip_config.json`` with its preprocessing, and ``open_clip_model.safetensors``;
- ``ARCHITECTURE/random``: weights from seed 0, the ones that clip-queue's tag ``random`` gives.

Every model is put into evaluation mode, which all_clip leaves out: a ResNet such as emoji-mini would normalise by the
statistics of each batch and give other vectors; of a ViT only the rounding changes.

What it takes to work at all: clip-anytorch imports ``pkg_resources``, which setuptools 80 has and 84 has not; the
package itself wants numpy 1, pyarrow 15 and open_clip 2. Nothing is fetched. There must be at least as many tars as
``--num-prepro-workers``: a worker without a tar ends the run. On a CPU the model computes in float32, not compiled
(``use_jit`` is off by default); on CUDA under autocast to bfloat16, to float16 where the card has no bfloat16. Before
the first image the model is warmed up: two batches of the full size through both towers, texts too.

Two helper processes that keep statistics import the whole package, some twenty seconds of one core each, the second
while the first batches are computed, and the call returns only after both: measure runs of minutes, or compare
``second_half_rows_per_s``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Loaded = tuple[Any, Callable[..., Any], Callable[..., Any]]  # model, preprocessing, tokenizer


@dataclass
class Marks:
    """When the model did what, by ``time.perf_counter``."""

    loading: float = 0.0
    loaded: float = 0.0
    warm: float = 0.0  # the end of the warm-up's last text; without texts no other follows
    images: list[tuple[float, int]] = field(default_factory=list)  # the end of each forward pass, and its rows
    precision: str = ""


def load(source: str, use_jit: bool, device: str, cache_dir: str | None) -> Loaded:
    import open_clip

    options: dict[str, Any] = {"device": device, "jit": use_jit, "cache_dir": cache_dir}
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:"))
        name, weights = folder.name, str(folder / "open_clip_model.safetensors")
        config = json.loads((folder / "open_clip_config.json").read_text())
        with tempfile.TemporaryDirectory() as temporary:
            known = Path(temporary) / f"{name}.json"
            known.write_text(json.dumps(config["model_cfg"]))
            open_clip.add_model_config(known)
        options |= {f"image_{key}": value for key, value in config["preprocess_cfg"].items()}
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=weights, **options)
    else:
        import torch

        name = source.removesuffix("/random")
        torch.manual_seed(0)
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None, **options)
    return model, preprocess, open_clip.get_tokenizer(name)


def loader(marks: Marks) -> Callable[[str, bool, str, str | None], Loaded]:
    """all_clip's loader of ``open_clip:`` models, for these sources, with a model that tells when it was called."""
    from all_clip.open_clip import OpenClipWrapper, load_open_clip

    class Marked(OpenClipWrapper):  # type: ignore[misc]
        def encode_image(self, image: Any) -> Any:
            out = super().encode_image(image)
            marks.images.append((time.perf_counter(), len(out)))
            return out

        def encode_text(self, text: Any) -> Any:
            out = super().encode_text(text)
            marks.warm = time.perf_counter()
            return out

    def load_marked(source: str, use_jit: bool, device: str, cache_dir: str | None) -> Loaded:
        marks.loading = time.perf_counter()
        if source.startswith("local-dir:") or source.endswith("/random"):
            inner, preprocess, tokenizer = load(source, use_jit, device, cache_dir)
        else:
            wrapped, preprocess, tokenizer = load_open_clip(source, use_jit, device, cache_dir)
            inner = wrapped.inner_model
        model = Marked(inner_model=inner, device=device).to(device=device).eval()
        marks.precision = str(model.dtype).removeprefix("torch.")
        marks.loaded = time.perf_counter()
        return model, preprocess, tokenizer

    return load_marked


def second_half(images: list[tuple[float, int]]) -> float | None:
    """Rows a second from the batch that completes half of the rows to the last one; none where there are too few."""
    total, seen = sum(rows for _, rows in images), 0
    for number, (end, rows) in enumerate(images):
        seen += rows
        if 2 * seen >= total:
            return (total - seen) / (images[-1][0] - end) if number + 1 < len(images) else None
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="clip-retrieval's inference, timed; the last line printed is JSON.")
    parser.add_argument("input_dataset", help="a folder, or tars: a path, {0..9} in it expands")
    parser.add_argument("output_folder", type=Path, help="must not exist")
    parser.add_argument("--clip-model", required=True, help="local-dir:FOLDER, ARCHITECTURE/random or ARCHITECTURE/TAG")
    parser.add_argument("--input-format", choices=("files", "webdataset"), default="files")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-prepro-workers", type=int, default=4)
    parser.add_argument("--write-batch-size", type=int, default=10**6)
    parser.add_argument("--wds-number-file-per-input-file", type=int, default=10_000)
    options = parser.parse_args()
    if options.output_folder.exists():
        parser.error(f"{options.output_folder} exists")

    begin = time.perf_counter()
    import numpy as np
    from all_clip import main as all_clip
    from clip_retrieval import clip_inference

    marks = Marks()
    all_clip._CLIP_REGISTRY["open_clip:"] = loader(marks)
    imported = time.perf_counter()
    clip_inference(
        input_dataset=options.input_dataset,
        output_folder=str(options.output_folder),
        input_format=options.input_format,
        batch_size=options.batch_size,
        num_prepro_workers=options.num_prepro_workers,
        enable_text=False,
        write_batch_size=options.write_batch_size,
        wds_number_file_per_input_file=options.wds_number_file_per_input_file,
        clip_model=f"open_clip:{options.clip_model}",
    )
    done = time.perf_counter()

    shards = sorted(options.output_folder.glob("img_emb/*.npy"))
    rows = sum(len(np.load(shard, mmap_mode="r")) for shard in shards)
    stats = [json.loads(path.read_text()) for path in options.output_folder.glob("stats/[0-9]*.json")]
    steady = sum(partition["total_duration"] for partition in stats)
    half = second_half([(end, count) for end, count in marks.images if end > marks.warm])
    report = {
        "rows": rows,
        "seconds": round(done - imported, 3),  # the whole call
        "import_seconds": round(imported - begin, 3),
        "load_seconds": round(marks.loaded - marks.loading, 3),
        "warm_up_seconds": round(marks.warm - marks.loaded, 3),
        "steady_seconds": round(steady, 3),  # reading, model, collecting: the package's own sum over its batches
        "rows_per_s": round(rows / steady, 2),
        "second_half_rows_per_s": half and round(half, 2),
        "precision": marks.precision,
        "shards": len(shards),
    }
    print("\n" + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
