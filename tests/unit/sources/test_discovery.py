"""Which files a source consists of: files, folders, globs, braces, whatever their names, here and in a store."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from clip_queue.sources.discovery import containers, name, root
from clip_queue.sources.left_out import Passed
from clip_queue.sources.source import SourceError

ODD = [
    "with space",
    "quo'te\"s",
    "new\nline",
    "ünï-コード",
    "br[ack]et",
    "{br,ace}",
    "st*r",
    "back\\slash",
    "per%20cent",
]


def put(folder: Path, *names: str) -> None:
    for each in names:
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).write_text("x" * len(each))


def names(url: str | Path, *suffixes: str) -> list[str]:
    return [name(root(str(url)), path) for path, _ in containers(str(url), suffixes or (".txt",))]


def refusal(url: str | Path, *suffixes: str) -> str:
    with pytest.raises(SourceError) as caught:
        containers(str(url), suffixes or (".txt",))
    return caught.value.message


def test_a_folder_gives_what_ends_so_sorted_with_sizes(tmp_path: Path) -> None:
    put(tmp_path, "b.txt", "a.TXT", "sub/deep/c.txt", "a.csv", ".hidden.txt", ".cache/d.txt", "e.txt.bak")
    assert names(tmp_path) == ["a.TXT", "b.txt", "sub/deep/c.txt"]
    assert names(f"file://{tmp_path}/") == ["a.TXT", "b.txt", "sub/deep/c.txt"]
    assert containers(str(tmp_path), (".csv",)) == [(os.fsencode(tmp_path / "a.csv"), 5)]


@pytest.mark.parametrize("odd", ODD)
def test_what_exists_is_itself(tmp_path: Path, odd: str) -> None:
    put(tmp_path, f"{odd}.txt", f"{odd}/in.txt", "brace.txt", "a.txt", "stxr.txt")
    assert names(tmp_path / f"{odd}.txt") == [f"{odd}.txt"]
    assert names(tmp_path / odd) == ["in.txt"]
    assert f"{odd}/in.txt" in names(tmp_path)
    assert names(tmp_path / odd / "*.txt") == names(tmp_path / odd / "{in,in}.txt") == ["in.txt"]
    assert "gone.txt does not exist" in refusal(tmp_path / odd / "gone.txt")


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(path, "wb"):  # noqa: PTH123
        pass
    assert containers(str(tmp_path), (".txt",)) == [(path, 0)]
    assert containers(os.fsdecode(path), (".txt",)) == [(path, 0)]
    assert names(tmp_path) == ["\\xff.txt"]


def test_globs(tmp_path: Path) -> None:
    put(tmp_path, "x/1.txt", "x/2.txt", "x/README", "y/1.txt", "y/deep/3.txt")
    assert names(tmp_path / "x" / "*.txt") == ["1.txt", "2.txt"]
    assert names(tmp_path / "x" / "*") == ["1.txt", "2.txt"]  # what ends so, as there is some
    assert names(tmp_path / "x" / "READ*") == ["README"]  # nothing does: it is what was meant
    assert names(tmp_path / "*" / "1.txt") == ["x/1.txt", "y/1.txt"]
    assert names(tmp_path / "[xy]") == ["x/1.txt", "x/2.txt", "y/1.txt", "y/deep/3.txt"]
    assert names(tmp_path / "**" / "*.txt") == ["x/1.txt", "x/2.txt", "y/1.txt", "y/deep/3.txt"]


def test_braces(tmp_path: Path) -> None:
    put(tmp_path, *(f"part-{n:05}.txt" for n in range(12)), "x/a.txt", "y/b.txt")
    assert names(tmp_path / "part-{00009..00011}.txt") == [f"part-{n:05}.txt" for n in (9, 10, 11)]
    assert names(tmp_path / "{x,y}" / "*.txt") == ["x/a.txt", "y/b.txt"]
    assert names(tmp_path / "{x,y,x}") == ["x/a.txt", "y/b.txt"]
    assert "part-00012.txt does not exist" in refusal(tmp_path / "part-{00011..00012}.txt")
    assert "braces do not match" in refusal(tmp_path / "part-{1.txt")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.csv")
    assert f"{tmp_path}: no file there ends in .txt or .text" in refusal(tmp_path, ".txt", ".text")
    assert "gone.txt does not exist" in refusal(tmp_path / "gone.txt")
    assert "nothing matches" in refusal(tmp_path / "*.txt")
    with pytest.raises(SourceError, match=r"ends in \.txt$"):
        containers(str(tmp_path), (".txt",), also=(".txt.gz",))


def test_what_is_to_be_refused_is_listed(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "b.txt.gz")
    assert [path for path, _ in containers(str(tmp_path), (".txt",), also=(".txt.gz",))] == [
        os.fsencode(tmp_path / each) for each in ("a.txt", "b.txt.gz")
    ]


def test_links_pipes_and_loops(tmp_path: Path) -> None:
    put(tmp_path, "real/a.txt")
    (tmp_path / "real" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself.txt").symlink_to(tmp_path / "itself.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    sizes = {name(str(tmp_path), path): size for path, size in containers(str(tmp_path), (".txt",))}
    assert sizes == {"dangling.txt": -1, "itself.txt": -1, "link.txt": 10, "real/a.txt": 10}


@pytest.mark.parametrize("odd", ODD)
def test_a_store(odd: str) -> None:
    store = fsspec.filesystem("memory")
    base = f"/listing-{odd}"
    for each in ("b.txt", "a.txt", "sub/c.txt", "d.csv", ".hidden/e.txt"):
        store.pipe_file(f"{base}/{each}", each.encode())
    try:
        url = f"memory:/{base}"
        assert names(url) == ["a.txt", "b.txt", "sub/c.txt"]
        assert containers(f"{url}/d.csv", (".txt",)) == [(f"{base}/d.csv".encode(), 5)]
        assert "ends in .tar" in refusal(url, ".tar")
        assert "does not exist" in refusal(f"{url}/gone")
        assert names(f"{url}/*.txt") == ["a.txt", "b.txt"]
    finally:
        for path in store.find(base):
            store.rm_file(path)


def test_patterns_in_a_store() -> None:
    store = fsspec.filesystem("memory")
    for each in ("a/1.txt", "a/2.txt", "b/1.txt", "b/1.csv"):
        store.pipe_file(f"/patterns/{each}", b"x")
    try:
        assert names("memory://patterns/*/1.txt") == ["a/1.txt", "b/1.txt"]
        assert names("memory://patterns/{a,b}/*") == ["a/1.txt", "a/2.txt", "b/1.txt"]
        assert "nothing matches" in refusal("memory://patterns/*.txt")
    finally:
        store.rm("/patterns", recursive=True)


def test_files_of_other_kinds_that_a_pattern_matches_are_counted(tmp_path: Path) -> None:
    for each in ("a.csv", "b.svg", "d/c.csv", "d/e.svg", "d/f"):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_text("x")
    passed = Passed()
    assert len(containers(f"{tmp_path}/*", (".csv",), passed=passed)) == 2
    assert passed == {".svg": [2, "b.svg"], "": [1, "d/f"]}
    passed = Passed()
    assert len(containers(f"{tmp_path}/b*", (".csv",), passed=passed)) == 1, "nothing else matches: it is meant"
    assert passed == {}
    assert len(containers(f"{tmp_path}/{{*.csv,d}}", (".csv",), passed=passed)) == 2
    assert passed == {".svg": [1, "e.svg"], "": [1, "f"]}
