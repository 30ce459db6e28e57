"""``embed`` with the workers of a real stack: every source, every kind of bad row, and what the output is to others."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from clip_queue.bulk.output.errors import AnotherRun, OutputError
from clip_queue.bulk.run.embed import embed
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.workers import NoWorker
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import SourceError
from tests import datasets
from tests.harness import Api, Stack, wait_for
from tests.outputs import checksums, matrix, strays, table
from tests.reference import Reference

COUNT = 13  # rows that are good
Served = tuple[Stack, Api]


def run(served: Served, source: str, output: Path, **options: object) -> Report:
    settings = Settings(precision="fp32")
    return embed(source, str(output), redis_url=served[0].valkey.url, settings=settings, **options)  # type: ignore[arg-type]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", list(datasets.MAKE))
def test_every_source_is_embedded_and_only_its_bad_rows_fail(
    served: Served, tmp_path: Path, reference: Reference, kind: str
) -> None:
    source = datasets.MAKE[kind](tmp_path, COUNT)
    output = tmp_path / "out"
    report = run(served, source.url, output, shard_size=4, dtype="float32")
    assert (report.rows, report.failed, report.status) == (COUNT, len(source.bad), 3), report.reasons
    found = table(output)
    assert [row["caption"] for row in found] == [caption for _, _, caption in source.good]
    if names := [name for name, _, _ in source.good if name]:
        assert [row["image_path"] for row in found] == names
    assert all(row["error"] is None for row in found)
    images = [image for _, image, _ in source.good if image]
    assert (output / "img_emb").exists() == bool(images)
    if images:
        np.testing.assert_allclose(matrix(output, "img_emb"), unit(reference.images(images)), atol=2e-6)
    captions = [caption for _, _, caption in source.good if caption]
    assert (output / "text_emb").exists() == bool(captions)
    if captions:
        np.testing.assert_allclose(matrix(output, "text_emb"), unit(reference.texts(captions)), atol=2e-6)
    errors = table(output, "errors")
    assert len(errors) == len(source.bad)
    assert all(row["error"] for row in errors)
    assert sum(reason.rows for reason in report.reasons.values()) == len(source.bad)
    assert all(1 <= len(reason.examples) <= 3 for reason in report.reasons.values())
    assert strays(output) == []


def test_each_file_of_metadata_is_as_long_as_its_matrices_and_has_the_same_columns(
    served: Served, tmp_path: Path
) -> None:
    source = datasets.tars(tmp_path / "in", COUNT)
    output = tmp_path / "out"
    report = run(served, source.url, output)
    files = [sorted((output / kind).iterdir()) for kind in ("img_emb", "text_emb", "metadata")]
    assert report.shards == 4
    assert [len(f) for f in files] == [3, 3, 3], "the last tar holds nothing good: readers trip over empty files"
    for image, text, about in zip(*files, strict=True):
        rows = table_of(about)
        assert len(np.load(image)) == len(np.load(text)) == len(rows)
        assert all(row["url"] == f"https://example.org/{row['key']}" for row in rows)
    assert {tuple(row) for row in table(output) + table(output, "errors")} == {tuple(table(output)[0])}


def table_of(path: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_the_default_is_clip_retrievals_float16_unit_vectors_and_raw_is_what_the_routes_answer(
    served: Served, http: httpx.Client, tmp_path: Path
) -> None:
    source = datasets.lines(tmp_path / "in.txt", 5)
    run(served, source.url, tmp_path / "unit")
    stored = np.load(tmp_path / "unit/text_emb/text_emb_0.npy", mmap_mode="r")
    assert (stored.dtype, stored.shape) == (np.float16, (5, 128))
    np.testing.assert_allclose(np.linalg.norm(stored.astype(np.float32), axis=1), 1, atol=1e-3)
    run(served, source.url, tmp_path / "raw", dtype="float32", normalize=False)
    answer = http.post("/clip/embed_text", json={"text": [t for _, _, t in source.good]}).json()["embeddings"]
    np.testing.assert_allclose(matrix(tmp_path / "raw", "text_emb"), answer, atol=2e-5)


def test_a_row_without_a_caption_keeps_its_image(served: Served, tmp_path: Path) -> None:
    source = datasets.folder(tmp_path / "in", 4)
    name = source.good[1][0]
    (tmp_path / "in" / name).with_suffix(".txt").unlink()
    report = run(served, source.url, tmp_path / "out")
    assert report.rows == 4
    texts = matrix(tmp_path / "out", "text_emb")
    assert [bool(row.any()) for row in texts] == [True, False, True, True]
    assert table(tmp_path / "out")[1]["caption"] is None


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not_stopped(served: Served, tmp_path: Path) -> None:
    source = datasets.folder(tmp_path / "in", 30)
    run(served, source.url, tmp_path / "whole", shard_size=3)
    stop_after = 2
    seen: list[int] = []

    stopped = run(
        served,
        source.url,
        tmp_path / "out",
        shard_size=3,
        show=lambda progress: seen.append(progress.complete),
        should_stop=lambda: bool(seen) and seen[-1] >= stop_after,
    )
    assert (stopped.status, stopped.stopped) == (130, True)
    assert 0 < stopped.complete < stopped.shards
    report = run(served, source.url, tmp_path / "out")  # the shard size is the plan's
    assert (report.status, report.rows, report.failed) == (3, 30, 4)
    # A shard may have been done in the moment of the stop, and was not waited for.
    assert stopped.rows + stopped.failed <= report.resumed < 30
    assert checksums(tmp_path / "out") == checksums(tmp_path / "whole")
    again = run(served, source.url, tmp_path / "out")
    assert (again.rows, again.seconds) == (30, 0), "it is finished: nothing is done"


def test_a_shard_whose_file_was_damaged_is_done_again(served: Served, tmp_path: Path) -> None:
    source = datasets.lines(tmp_path / "in.txt", 12)
    run(served, source.url, tmp_path / "out", shard_size=5)
    before = checksums(tmp_path / "out")
    (tmp_path / "out/text_emb/text_emb_1.npy").write_bytes(b"cut")
    (tmp_path / "out/metadata/metadata_2.parquet").unlink()
    report = run(served, source.url, tmp_path / "out")
    assert report.finished
    assert checksums(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"shard_size": 7}, "shard size is 5 there, 7 here"),
        ({"dtype": "float32"}, "dtype is 'float16' there, 'float32' here"),
        ({"normalize": False}, "normalize is True there, False here"),
        ({"texts": False}, "texts is True there, False here"),
        ({"model": "ViT-B-32"}, "the model is 'emoji-mini' there, 'ViT-B-32' here"),
    ],
)
def test_other_options_into_the_same_output_are_refused(
    served: Served, tmp_path: Path, change: dict[str, object], what: str
) -> None:
    source = datasets.lines(tmp_path / "in.txt", 3)
    run(served, source.url, tmp_path / "out", shard_size=5)
    with pytest.raises(AnotherRun, match=what):
        run(served, source.url, tmp_path / "out", **change)


def test_another_source_or_another_model_of_the_same_name_is_refused(served: Served, tmp_path: Path) -> None:
    source = datasets.lines(tmp_path / "in.txt", 3)
    other = datasets.lines(tmp_path / "other.txt", 3)
    run(served, source.url, tmp_path / "out")
    with pytest.raises(AnotherRun, match=r"the source is .*in\.txt.* there, .*other\.txt.* here"):
        run(served, other.url, tmp_path / "out")
    manifest = tmp_path / "out/manifest.json"
    said = orjson.loads(manifest.read_bytes())
    said["result"], said["plan"]["model"]["fingerprint"] = None, "0123456789abcdef"
    manifest.write_bytes(orjson.dumps(said))
    with pytest.raises(AnotherRun, match=r"begun with emoji-mini 0123456789abcdef .*workers have"):
        run(served, source.url, tmp_path / "out")


def test_what_cannot_begin_says_why(served: Served, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty"):
        run(served, str(tmp_path / "empty"), tmp_path / "out")
    with pytest.raises(SourceError, match="missing"):
        run(served, str(tmp_path / "missing"), tmp_path / "out")
    source = datasets.lines(tmp_path / "in.txt", 3)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        run(served, source.url, tmp_path / "file")
    with pytest.raises(NoWorker, match="serve emoji-mini"):
        run(served, source.url, tmp_path / "out", model="ViT-B-32", retry=RetryPolicy(find_workers=1.0))
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_run_is_a_job_with_progress_that_can_be_polled_and_cancelled(
    served: Served, http: httpx.Client, tmp_path: Path
) -> None:
    source = datasets.lines(tmp_path / "in.txt", 2000)
    jobs: list[dict[str, object]] = []

    def look(_: object) -> None:
        running = http.get("/jobs", params={"state": "running"}).json()["jobs"]
        mine = [job for job in running if job["task"] == "embed_dataset"]
        if mine and mine[0]["progress"]["shards"]["whole"] and not jobs:
            jobs.extend(mine)
            assert http.delete(f"/jobs/{mine[0]['id']}").status_code == 200

    report = run(served, source.url, tmp_path / "out", shard_size=50, show=look)
    assert report.stopped
    assert report.status == 130
    job = jobs[0]
    assert job["items"]["total"] == 2002  # type: ignore[index]
    assert job["progress"]["workers"] == 1  # type: ignore[index]
    assert http.get(f"/jobs/{job['id']}").json()["state"] == "cancelled"
    wait_for(lambda: not http.get("/jobs", params={"state": "running"}).json()["jobs"], 30)

    done = run(served, source.url, tmp_path / "out")
    finished = http.get("/jobs", params={"state": "succeeded"}).json()["jobs"]
    mine = next(job for job in finished if job["task"] == "embed_dataset")
    assert (mine["items"]["done"], mine["items"]["failed"]) == (done.rows, done.failed) == (2000, 2)
    assert http.get(f"/jobs/{mine['id']}/result").json()["rows"] == 2000
    assert http.get(f"/jobs/{mine['id']}/result", headers={"Accept": "application/x-npy"}).status_code == 400
    assert mine["progress"]["eta_s"] in (0, None)
