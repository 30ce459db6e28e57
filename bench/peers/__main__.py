"""clip-queue beside infinity, on the same pictures with the same weights: ``make bench-peers``.

ViT-B/32 with random weights (``hugging_face.py`` writes them for infinity), one JPEG a request, 32 at once. All
services run at once; the load goes to one after the other, in turns; those that are not asked idle. The cosines are of
each service's vectors with those of this one's model at fp32. ``ARGS="SECONDS ROUNDS"``: of a turn, 8, and 3.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import orjson

from bench import versus
from bench.common import ROUNDS, SECONDS, VIT, Row, photo, show
from bench.load import run
from bench.peers import hugging_face
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Matrix, normalise
from clip_queue.stack.machine import free_port
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode

# The Python of infinity's environment, which `make .venv-peers/.done` makes.
PEERS = Path(os.environ.get("CLIP_QUEUE_PEERS_PYTHON", ".venv-peers/bin/python")).absolute()
AT_ONCE = 32
SIZE = (640, 480)
PICTURES = 64
START = 300.0  # seconds that infinity may take to be ready


@dataclass(frozen=True)
class Service:
    """``bodies``: one for each picture."""

    name: str
    url: str
    path: str
    bodies: list[bytes]

    def rate(self, seconds: float) -> float:
        load = run(self.url, self.path, itertools.cycle(self.bodies), at_once=AT_ONCE, seconds=seconds)
        if load.failures:
            raise AssertionError(f"{load.failures} requests of {self.name} failed")
        return load.rate

    def vectors(self) -> Matrix:
        """Unit vectors, one a picture."""
        rows = []
        for body in self.bodies:
            headers = {"Content-Type": "application/json"}
            answer = httpx.post(self.url + self.path, content=body, headers=headers, timeout=60, trust_env=False)
            found = answer.raise_for_status().json()
            rows.append(found["embeddings"][0] if "embeddings" in found else found["data"][0]["embedding"])
        return normalise(np.asarray(rows, np.float32))


def main(seconds: float = SECONDS, rounds: int = ROUNDS) -> None:
    if not PEERS.exists():
        sys.exit(f"{PEERS} is not there: make .venv-peers/.done")
    pictures = [photo(seed, SIZE) for seed in range(PICTURES)]
    encoded = [base64.b64encode(picture).decode() for picture in pictures]
    own = [orjson.dumps({"image": {"type": "base64", "value": data}}) for data in encoded]
    theirs = [
        orjson.dumps({"model": "clip", "modality": "image", "input": [f"data:image/jpeg;base64,{data}"]})
        for data in encoded
    ]
    with tempfile.TemporaryDirectory(prefix="clip-queue-peers-") as folder, contextlib.ExitStack() as stack:
        hugging_face.write(Path(folder) / "clip")
        urls = {dtype: stack.enter_context(infinity(Path(folder), dtype)) for dtype in ("float32", "int8")}
        ours = []
        for precision in ("auto", "int8"):
            chosen = {"CLIP_QUEUE_PRECISION": precision}
            url = stack.enter_context(versus.served(versus.CASES["images"], None, chosen))
            ours.append(Service(f"clip-queue {precision}", url, "/clip/embed_image", own))
        peers = [Service(f"infinity {dtype}", url, "/embeddings", theirs) for dtype, url in urls.items()]
        services = [*ours, *peers]
        exact = fp32(pictures)
        errors = {service.name: (service.vectors() * exact).sum(axis=1) for service in services}
        rates: dict[str, list[float]] = {service.name: [] for service in services}
        for service in services:
            service.rate(min(3.0, seconds))
        for number in range(rounds):
            for service in services if number % 2 else services[::-1]:
                rates[service.name].append(service.rate(seconds))
    rows = [Row(name, values, "images/s") for name, values in rates.items()]
    for one, peer in itertools.product(ours, peers):
        ratios = [a / b for a, b in zip(rates[one.name], rates[peer.name], strict=True)]
        rows.append(Row(f"{one.name} ÷ {peer.name}", ratios, "", "≥ 1.25" if "int8" in peer.name else ""))
    show(f"ViT-B/32, random weights, JPEG {SIZE[0]} × {SIZE[1]}, {AT_ONCE} at once", rows)
    cosines = [Row(f"{name}: least", [float(found.min())], "") for name, found in errors.items()]
    cosines += [Row(f"{name}: mean", [float(found.mean())], "") for name, found in errors.items()]
    show(f"cosine with fp32, {PICTURES} pictures", cosines, 6)


def fp32(pictures: list[bytes]) -> Matrix:
    clip = ClipModel(parse_model(VIT), Settings(precision="fp32", resize="exact"))
    pixels = [decode(data, clip.preprocess, max_bytes=10**9, max_pixels=10**9) for data in pictures]
    return normalise(clip.embed_images(pixels).result())


@contextmanager
def infinity(folder: Path, dtype: str) -> Iterator[str]:
    """infinity at a precision; yields its URL."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    command = [str(PEERS.parent / "infinity_emb"), "v2", "--model-id", str(folder / "clip"), "--dtype", dtype]
    command += ["--served-model-name", "clip", "--device", "cpu", "--engine", "torch", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--batch-size", str(AT_ONCE), "--no-bettertransformer"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    log = folder / f"{dtype}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + START
            while not healthy(url):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"infinity: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def healthy(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=10, trust_env=False).status_code == 200
    return False


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:], strict=False)))
