"""The parts of the GPU's benchmark. Each measures within its time and reports a figure as soon as it has it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from bench.common import Row, bare, image_bodies, photo, served, show, worker_of
from bench.gpu.busy import Busy
from bench.load import Load, run
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings, cores
from clip_queue.shared.stages import from_wire
from clip_queue.shared.vectors import Matrix, normalise
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode

VIT = "ViT-B-32=ViT-B-32/random"
MODELS = ("emoji-mini", VIT, "ViT-L-14=ViT-L-14/random")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
AT_ONCE = (1, 32, 256)
WORKERS = (1, 2, 4)
PHOTO = (256, 256)
ROWS = 40_000  # of a bulk run, at most


@dataclass
class Bench:
    """What a part gets. ``seconds`` are for measuring; :meth:`report` takes figures by name."""

    device: str
    seconds: float
    out: Path

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + self.seconds
        self.gpu = self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()

    def report(self, **figures: object) -> None:
        with self.out.open("a") as out:
            out.write(json.dumps(figures) + "\n")

    def settings(self, **update: object) -> Settings:
        return Settings(device=self.device).model_copy(update=update)


@dataclass(frozen=True)
class Part:
    run: Callable[[Bench], None]
    share: float  # of the time


def machine(bench: Bench) -> None:
    """the card, its driver, torch and the cores"""
    about: dict[str, object] = {"torch": torch.__version__, "cores": cores(), "device": bench.device}
    if bench.gpu:
        properties = torch.cuda.get_device_properties(torch.device(bench.device))
        about["card"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        )
        about["cuda"] = torch.version.cuda
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    bench.report(**about)


def parity(bench: Bench) -> None:
    """vectors at fp16 and bf16 against fp32: least and mean cosine of images and of texts"""
    count = 48 if bench.gpu else 4
    data = [photo(seed, PHOTO) for seed in range(count)]
    texts = [f"a photo of thing {number} on a table, {'very ' * (number % 9)}old" for number in range(count)]
    for model in MODELS:
        if bench.left < 10:
            raise TimeoutError(f"no time for {model}")
        exact = vectors(bare(model, bench.settings(precision="fp32", resize="exact")), data, texts)
        rows: list[Row] = []
        for precision in ("fp16", "bf16") if bench.gpu else ("bf16",):
            found = vectors(bare(model, bench.settings(precision=precision, resize="exact")), data, texts)
            for kind in ("images", "texts"):
                cosines = (exact[kind] * found[kind]).sum(axis=1)
                rows.append(Row(f"{precision}, {kind}: least", [float(cosines.min())], "", "≥ 0.999"))
                rows.append(Row(f"{precision}, {kind}: mean", [float(cosines.mean())], ""))
        reported(bench, f"cosine to fp32, {parse_model(model).name}", rows, 6)


def vectors(clip: ClipModel, data: list[bytes], texts: list[str]) -> dict[str, Matrix]:
    pixels = [pixels_of(clip, each) for each in data]
    tokens = [clip.tokenizer(text) for text in texts]
    return {
        "images": normalise(clip.embed_images(pixels).result()),
        "texts": normalise(clip.embed_texts(tokens).result()),
    }


def pixels_of(clip: ClipModel, encoded: bytes) -> Any:
    return decode(encoded, clip.preprocess, max_bytes=10**9, max_pixels=10**9, draft=clip.draft)


def ceilings(bench: Bench) -> None:
    """the bare forward pass by batch size, one pass ahead as the worker does it; alone, with its wait"""
    sizes = SIZES if bench.gpu else SIZES[:4]
    each = bench.seconds / len(MODELS) / len(sizes) / 4  # two kinds, two ways; loading takes its part
    for model in MODELS:
        if bench.left < 10:
            raise TimeoutError(f"no time for {model}")
        clip = bare(model, bench.settings())
        random = np.random.default_rng(0)
        images = random.integers(0, 255, (max(sizes), *clip.image_size, 3), dtype=np.uint8)
        text = clip.tokenizer("a photo of a thing on a table")
        rows = []
        with Busy(torch.device(bench.device)) as busy:
            for size in sizes:
                launches: dict[str, Callable[[], Any]] = {
                    "images": partial(clip.embed_stack, clip.stack(list(images[:size]))),
                    "texts": partial(clip.embed_texts, [text] * size),
                }
                for kind, launch in launches.items():
                    rate, alone = passes(launch, min(each, 1.5))
                    rows.append(Row(f"batch {size}: {kind}", [rate * size], "rows/s"))
                    rows.append(Row(f"batch {size}: {kind}, one pass and its wait", [1000 * alone], "ms"))
        rows.append(Row("card busy, of all this time", [busy.share], ""))
        reported(bench, f"bare, {parse_model(model).name}, {clip.precision}", rows)


def passes(launch: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Passes a second with one launched ahead, and the seconds of one alone (median)."""
    for _ in range(3):
        launch().result()
    taken: list[float] = []
    until = time.perf_counter() + seconds / 2
    while time.perf_counter() < until or not taken:
        began = time.perf_counter()
        launch().result()
        taken.append(time.perf_counter() - began)
    began, done, before = time.perf_counter(), 0, launch()
    while time.perf_counter() - began < seconds / 2 or not done:
        following = launch()
        before.result()
        before, done = following, done + 1
    before.result()
    return (done + 1) / (time.perf_counter() - began), float(np.median(taken))


def decoding(bench: Bench) -> None:
    """decoding alone, rows a second a core and on all of them: what bulk and serving cannot exceed"""
    for processes in (1, cores()):
        with ProcessPoolExecutor(processes) as pool:
            seconds = min(4.0, bench.left / 3)
            rate = sum(pool.map(_decode, [seconds] * processes))
        reported(bench, f"decoding 256 px JPEG, {processes} processes", [Row("rows a second", [rate], "rows/s")])


def _decode(seconds: float) -> float:
    from clip_queue.worker.inference.preprocess import fast

    clip_config = _config()
    torch.set_num_threads(1)
    preprocess = fast(clip_config)
    assert preprocess
    data = [photo(seed, PHOTO) for seed in range(16)]
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        decode(data[done % 16], preprocess, max_bytes=10**9, max_pixels=10**9)
        done += 1
    return done / (time.perf_counter() - began)


def _config() -> Any:
    from clip_queue.worker.inference.libraries import PreprocessCfg

    return PreprocessCfg(size=(224, 224))


def serving(bench: Bench) -> None:
    """one image a request, over HTTP: images/s, p50, p99, and where the time goes"""
    with served(VIT, apis=None, device=bench.device) as stack, contextlib.ExitStack() as ends:
        apis, processes = stack.apis.number, stack.pids
        # Clients are forked by the first load, before this process has threads; so many that none is the limit.
        clients = ends.enter_context(ProcessPoolExecutor(apis))
        load(clients, apis, stack.api_url, 4 * apis, 3.0)
        for at_once in AT_ONCE:
            seconds = min(15.0, bench.left / len(AT_ONCE) - 3)
            if seconds < 2:
                raise TimeoutError(f"no time for {at_once} at once")
            before, spent = worker_of(stack), cpu(processes)
            with Busy(torch.device(bench.device)) as busy:
                began = time.monotonic()
                found = load(clients, apis, stack.api_url, at_once, seconds)
                wall = time.monotonic() - began
            used = {name: (now - spent[name]) / wall for name, now in cpu(processes).items()}
            time.sleep(1.2)  # the worker's figures are a second old at most
            after = worker_of(stack)
            batches = max(1, after.batches - before.batches)
            rows = [
                Row("served", [found.rate], "images/s", "≥ 2,500" if at_once > 1 else ""),
                Row("p50", [1000 * found.percentile(0.5)], "ms"),
                Row("p99", [1000 * found.percentile(0.99)], "ms", "≤ 50"),
                Row("failed", [found.failures], "requests", "0"),
                Row("mean batch", [(after.items - before.items) / batches], "images"),
                Row("card busy", [busy.share], ""),
                Row("worker in forward passes", [(after.busy - before.busy) / wall], ""),
                *(
                    Row(f"stage {name}, mean", [1000 * seconds], "ms")
                    for name, seconds in stages(before, after).items()
                ),
                *(Row(f"cores of {name}", [share], "") for name, share in sorted(used.items())),
            ]
            reported(bench, f"ViT-B/32, 256 px JPEG, {at_once} at once, {apis} API processes", rows)


def load(clients: ProcessPoolExecutor, count: int, url: str, at_once: int, seconds: float) -> Load:
    """A load of single images by so many client processes; their figures together."""
    count = min(count, at_once)
    shares = [at_once // count + (number < at_once % count) for number in range(count)]
    found = list(clients.map(_client, [url] * count, shares, [seconds] * count))
    whole = Load(max(one.seconds for one in found))
    for one in found:
        whole.latencies += one.latencies
        whole.failures += one.failures
    return whole


def _client(url: str, at_once: int, seconds: float) -> Load:
    return run(url, "/clip/embed_image", image_bodies(PHOTO), at_once=at_once, seconds=seconds)


def cpu(processes: dict[str, int]) -> dict[str, float]:
    """Seconds of processor time that each process has used."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in processes.items()}
    return {name: used.user + used.system for name, used in times.items()}


def stages(before: Any, after: Any) -> dict[str, float]:
    """Mean seconds of each stage of the jobs between two reports of a worker."""

    def sums(worker: Any) -> dict[str, tuple[float, int]]:
        found: dict[str, tuple[float, int]] = {}
        for *_, stage, histogram in from_wire(worker.stages):
            seconds, count = found.get(stage, (0.0, 0))
            found[stage] = (seconds + histogram.total, count + sum(histogram.counts))
        return found

    old, new = sums(before), sums(after)
    differences = {name: (s - old.get(name, (0, 0))[0], n - old.get(name, (0, 0))[1]) for name, (s, n) in new.items()}
    return {name: seconds / count for name, (seconds, count) in differences.items() if count}


def bulk(bench: Bench) -> None:
    """embed, 256 px JPEGs in a folder, with 1, 2 and 4 workers on one card"""
    if not importlib.util.find_spec("pyarrow"):
        raise RuntimeError("pyarrow is not installed here, and bulk needs it")
    from bench import datasets
    from clip_queue.bulk.run.embed import embed

    datasets.folder("256")
    rows, rate = (2000 if bench.gpu else 64), 0.0
    for workers in WORKERS:
        each = bench.left / (len(WORKERS) - WORKERS.index(workers))
        if each < 5:
            raise TimeoutError(f"no time for {workers} workers")
        settings = bench.settings(models=[VIT])
        with EmbeddedStack(settings, workers=workers, apis=0) as stack:
            warm = time.monotonic()
            with tempfile.TemporaryDirectory() as output:
                report = embed(
                    datasets.links(rows),
                    output,
                    model=VIT,
                    redis_url=stack.redis_url,
                    settings=stack.settings,
                    show=False,
                )
            rate = max(rate, report.rate)
            took = time.monotonic() - warm
            count = max(rows, min(ROWS, int(rate * min(20.0, each / 2 - took)) // 64 * 64))
            processes = {name: pid for name, pid in stack.pids.items() if name.startswith("worker")}
            spent = cpu(processes)
            with Busy(torch.device(bench.device)) as busy, tempfile.TemporaryDirectory() as output:
                began = time.monotonic()
                report = embed(
                    datasets.links(count),
                    output,
                    model=VIT,
                    redis_url=stack.redis_url,
                    settings=stack.settings,
                    show=False,
                )
                wall = time.monotonic() - began
            used = sum(now - spent[name] for name, now in cpu(processes).items()) / wall
        waited = {f"waited for {name}": seconds for name, seconds in report.waited.items()}
        rows_of = [
            Row("embed", [report.rate], "rows/s", "≥ 10,000"),
            Row("card busy", [busy.share], ""),
            Row("cores of the workers", [used], ""),
            Row("rows a core", [report.rate / max(used, 1e-9)], "rows/s"),
            *(Row(name, [seconds], "s") for name, seconds in waited.items()),
        ]
        reported(bench, f"bulk, ViT-B/32, {report.rows:,} rows of 256 px JPEG, {workers} workers on one card", rows_of)
        rate = report.rate


def reported(bench: Bench, title: str, rows: list[Row], digits: int = 4) -> None:
    show(title, rows, digits)
    values = {f"{row.name} ({row.unit})" if row.unit else row.name: row.values[0] for row in rows}
    bench.report(**{title: {name: None if math.isnan(value) else value for name, value in values.items()}})


PARTS = {
    "machine": Part(machine, 0.04),
    "parity": Part(parity, 0.14),
    "ceilings": Part(ceilings, 0.26),
    "decoding": Part(decoding, 0.06),
    "serving": Part(serving, 0.2),
    "bulk": Part(bulk, 0.3),
}


if __name__ == "__main__":
    name, device, seconds, out = sys.argv[1:]
    bench = Bench(device, float(seconds), Path(out))
    try:
        PARTS[name].run(bench)
    except (TimeoutError, RuntimeError) as error:
        bench.report(**{"left out": f"{type(error).__name__}: {str(error)[:300]}"})
        raise
