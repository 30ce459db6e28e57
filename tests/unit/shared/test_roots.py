"""Which paths and URLs the settings allow a run that came over HTTP, by their text and by where they lead."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.roots import OutsideRoots, RealRoots, check_output, check_source, folder_of, root
from clip_queue.shared.settings import Settings

SOURCES = ["/data/in", "s3://bucket/in", "https://images.test/open"]
OUTPUTS = ["/data/out", "s3://bucket/out"]


@pytest.mark.parametrize(
    ("url", "becomes"),
    [
        ("/data/in", "/data/in"),
        ("/data/in/", "/data/in"),
        ("//data//in/./a", "/data/in/a"),
        ("file:///data/in/a.csv", "/data/in/a.csv"),
        ("/data/in/{000..127}.tar", "/data/in/{000..127}.tar"),
        ("/data/in/{a,b}/*.parquet", "/data/in/{a,b}/*.parquet"),
        ("/data/in/a..b/c", "/data/in/a..b/c"),
        ("/data/in/...", "/data/in/..."),
        ("/data/in/a::b.csv", "/data/in/a::b.csv"),
        ("/data/in/x://y.csv", "/data/in/x:/y.csv"),
        ("/data/in/é 中", "/data/in/é 中"),
        ("s3://bucket/in/", "s3://bucket/in"),
        ("s3://bucket/in/a b.parquet", "s3://bucket/in/a b.parquet"),
        ("https://images.test/open/a.csv", "https://images.test/open/a.csv"),
    ],
)
def test_a_source_in_a_root_is_taken(url: str, becomes: str) -> None:
    assert check_source(url, SOURCES) == becomes


@pytest.mark.parametrize(
    "url",
    [
        *(
            "/etc/passwd",
            "/data",
            "/data/in-evil",
            "/data/insider/a",
            "/data/in*/a",
            "/data/{in,out}/a",
            "/",
            "/data/i?/a",
        ),
        *("s3://bucket", "s3://bucket-evil/in", "s3://bucket/in-evil", "s3://bucket/inside", "s3a://bucket/in"),
        *("S3://bucket/in", "gs://bucket/in", "memory://data/in", "http://images.test/open/a", "local:///data/in"),
        *("https://images.test@evil.test/open", "https://images.test.evil.test/open", "https://evil.test/open"),
        *("https://u:p@images.test/open/a", "ftp://data/in", "abfs://bucket/in", "FILE:///data/in", "hf://data/in"),
    ],
)
def test_a_source_outside_is_refused(url: str) -> None:
    with pytest.raises(OutsideRoots, match=r"'source' must lie in one of: /data/in, .*\(setting bulk_sources\)"):
        check_source(url, SOURCES)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "data/in",
            "./data/in",
            "~/in",
            "~root/in",
            "..",
            "data/in/../in",
            "in\0",
            "/data/in/\0/../x",
            "/" + "a" * 4096,
        ),
        *(
            "/data/in/..",
            "/data/in/../out",
            "/data/in/../../etc/passwd",
            "/data/in/a/../b",
            "/../data/in",
            "//../data/in",
        ),
        *(
            "/data/in/{..,a}/x",
            "/data/in/{a/../../../etc,b}",
            "/data/in/{a,..}/x",
            "/data/in/.{.,a}/x",
            "/data/in/{.,a}{.,b}/x",
        ),
        *("/data/in/{x,{..,y}}/z", "/data/in/\ud800", "file://data/in", "file://localhost/data/in", "file:/data/in"),
        *(
            "simplecache::s3://bucket/in/a",
            "zip://a.csv::/etc/x.zip",
            "s3://bucket/in/a.zip::zip://b",
            "s3://bucket/in::x",
        ),
        *(
            "zip::/data/in/a.zip",
            "s3://bucket/in/../other",
            "s3://bucket/in/s3://other/a",
            "s3://bucket/in/%2e%2e/other",
        ),
        *(
            "https://images.test/open/%2E%2e/x",
            "https://images.test/open/..%2fx",
            "https://images.test/open%5c..%5cx",
            "C:\\in",
        ),
    ],
)
def test_a_source_that_could_lead_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="'source'"):
        check_source(url, SOURCES)


@pytest.mark.parametrize(
    ("output", "error", "says"),
    [
        ("/data/out", OutsideRoots, "below the one that is allowed"),
        ("/data/out/", OutsideRoots, "below the one that is allowed"),
        ("/data/outer/a", OutsideRoots, "bulk_outputs"),
        ("/data/in/a", OutsideRoots, "bulk_outputs"),
        ("s3://bucket/out-2/a", OutsideRoots, "bulk_outputs"),
        ("/data/out/a/../../in", BadInput, "no '..'"),
        ("/data/out/a*", BadInput, "one folder"),
        ("/data/out/{a,b}", BadInput, "one folder"),
        ("out", BadInput, "absolute"),
    ],
)
def test_an_output_outside_is_refused(output: str, error: type[ClipError], says: str) -> None:
    with pytest.raises(error, match=says):
        check_output(output, OUTPUTS, ["/data/in"])


@pytest.mark.parametrize(
    ("output", "source"),
    [
        ("/data/a/b", "/data/a"),
        ("/data/a", "/data/a"),
        ("/data/a", "/data/a/b"),
        ("/data/a/b", "/data/*/x"),
        ("/data/a/b", "/data/{a,c}/x"),
        ("s3://b/a/out", "s3://b/a"),
    ],
)
def test_an_output_in_its_source_is_refused(output: str, source: str) -> None:
    with pytest.raises(BadInput, match="lies in the source"):
        check_output(output, ["/data", "s3://b"], [source])


def test_an_output_beside_its_source_is_taken() -> None:
    assert check_output("/data/out//a/", OUTPUTS, ["/data/in", "/data/out/a-in/*.tar"]) == "/data/out/a"
    assert check_output("s3://bucket/out/a", OUTPUTS, ["/data/in"]) == "s3://bucket/out/a"


def test_the_folder_of_a_pattern_is_what_comes_before_it() -> None:
    assert folder_of("/data/in/a*/b") == "/data/in"
    assert folder_of("/data/in/a.csv") == "/data/in/a.csv"
    assert folder_of("/*") == "/"


@pytest.mark.parametrize(
    "wrong", ["data", "~/data", "/data/../etc", "/data/*", "/{a,b}", "s3://", "s3:///", "a::s3://b"]
)
def test_a_root_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"must name|no absolute"):
        root(wrong)
    with pytest.raises(ValidationError):
        Settings(bulk_sources=wrong)  # type: ignore[arg-type]


def test_roots_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_BULK_SOURCES", "/data/, file:///more ,s3://b/x/")
    settings = Settings()
    assert settings.bulk_sources == ["/data", "/more", "s3://b/x"]
    assert settings.env()["CLIP_QUEUE_BULK_SOURCES"] == "/data,/more,s3://b/x"
    assert Settings().bulk_outputs == []


def test_links_are_followed_before_they_are_judged(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "a").touch()
    (inside / "to file").symlink_to(outside / "a")
    (inside / "to folder").symlink_to(outside)
    (inside / "own").symlink_to(inside)
    (tmp_path / "alias").symlink_to(inside)
    roots = RealRoots([str(tmp_path / "alias")])
    assert roots.hold(inside)
    assert roots.hold(inside / "own" / "x")
    assert roots.hold(tmp_path / "alias" / "not there yet" / "x")
    assert roots.hold(bytes(inside / "b"))
    for path in (inside / "to file", inside / "to folder" / "a", inside / "to folder" / "new", outside, tmp_path):
        assert not roots.hold(path)
    assert not RealRoots([str(inside)]).hold(tmp_path / "inside-evil")
    assert RealRoots(["/"]).hold("/etc")
    assert not RealRoots([]).hold("/")


def test_what_is_open_is_judged_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").touch()
    (tmp_path / "secret").touch()
    with (tmp_path / "secret").open() as file:
        assert not RealRoots([str(tmp_path / "in")]).hold_open(file.fileno(), tmp_path / "in" / "a")
    with (tmp_path / "in" / "a").open() as file:
        assert RealRoots([str(tmp_path / "in")]).hold_open(file.fileno(), tmp_path / "in" / "a")
