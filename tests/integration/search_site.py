"""A service with outputs to search: a worker, an API, and the package's samples embedded from several sources."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bulk_command import Embed
from tests.harness import Api, Stack, stack
from tests.wire import ok

SAMPLES = sorted((Path(__file__).parents[2] / "cli" / "samples").glob("*.png"))


@dataclass
class Site:
    stack: Stack
    api: Api
    http: httpx.Client
    folder: Path

    def post(self, name: str, **body: object) -> httpx.Response:
        return self.http.post(f"/search/{name}", json=body)

    def hits(self, name: str, **body: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ok(self.post(name, **body))["hits"]
        return found

    def refused(self, status: int, code: str, response: httpx.Response) -> str:
        assert response.status_code == status, response.text[:300]
        assert response.json()["code"] == code
        return str(response.json()["message"])


def embed(it: Stack, source: str, output: Path, *options: str) -> None:
    run = Embed(it.folder, source, output, *options, name=f"embed-{output.name}", env=it.env())
    run.start()
    assert run.ended() == 0, run.said


def fill(folder: Path, samples: list[Path]) -> Path:
    folder.mkdir(parents=True)
    for path in samples:
        shutil.copy(path, folder / path.name)
        (folder / path.name).with_suffix(".txt").write_text(path.stem)
    return folder


def tar_of(path: Path, samples: list[Path]) -> Path:
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            tar.add(sample, sample.name)
    return path


def table_of(path: Path, samples: list[Path]) -> Path:
    names, data = [sample.stem for sample in samples], [sample.read_bytes() for sample in samples]
    about = {"image": data, "caption": names, "likes": range(len(names)), "raw": data}
    pq.write_table(pa.table(about), path)
    return path


@contextmanager
def serving(folder: Path, *names: str) -> Iterator[Site]:
    """The outputs of these names, which lie in ``folder``/out; their sources in ``folder``/in."""
    made = {
        "samples": lambda: fill(folder / "in" / "samples", SAMPLES),
        "hostile": lambda: fill(folder / "in" / "hostile", SAMPLES[:8]),
        "changing": lambda: fill(folder / "in" / "changing", SAMPLES[:3]),
        "tar": lambda: tar_of(folder / "in" / "some.tar", SAMPLES[:4]),
        "table": lambda: table_of(folder / "in" / "some.parquet", SAMPLES[:4]),
    }
    (folder / "in").mkdir()
    with stack(folder) as it:
        worker = it.worker()
        it.ready(worker, timeout=240)
        for name in names:
            embed(it, str(made[name]()), folder / "out" / name)
        api = it.api(search=",".join(f"{name}={folder / 'out' / name}" for name in names))
        it.ready(api, timeout=240)
        with api.client() as http:
            yield Site(it, api, http, folder)
