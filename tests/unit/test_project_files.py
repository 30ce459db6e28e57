"""The project's own pages: their links lead somewhere, and what they name exists."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import clip_queue
from clip_queue.version import __version__
from tests.harness import ROOT

FOLDERS = (
    "api",
    "bench",
    "bulk",
    "cli",
    "client",
    "clip_queue",
    "shared",
    "sources",
    "stack",
    "tests",
    "training",
    "worker",
)
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md")),
    *("deploy/kubernetes/clip-queue/README.md", "deploy/systemd/README.md"),
)
LINK = re.compile(r"(?:\[[^\]]*\]\(|<img src=\")([^)\"\s]+)[)\"]")
MODULE = re.compile(r"(?<![\w/.@:-])clip_queue(?:\.\w+)+")
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?:\S*/)?make ([a-z-]+)", re.MULTILINE)


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


@lru_cache
def anchors(page: str) -> set[str]:
    """What the headings of a page can be linked by."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def links(page: str) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if "://" not in link]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert target.is_relative_to(ROOT), f"{page} links to {link}, outside the project"
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), f"{page} links to {link}: no such heading"


def test_links_are_found() -> None:
    assert {"docs/design.md", "docs/settings.md", "docs/figures.md", "docs/architecture.svg"} <= set(links("README.md"))
    assert "how-it-works" in anchors("README.md")


def test_the_readme_is_short_and_says_image() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 160
    assert "picture" not in text.lower()


def test_the_python_examples_use_the_public_face() -> None:
    blocks = [block for page in PAGES for block in EXAMPLE.findall((ROOT / page).read_text())]
    ours = [
        node
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "clip_queue"
    ]
    assert ours
    for node in ours:
        assert node.module == "clip_queue"
        assert {alias.name for alias in node.names} <= set(clip_queue.__all__)


def test_make_has_what_the_pages_call() -> None:
    named = {target for page in PAGES for target in COMMAND.findall((ROOT / page).read_text())}
    named |= {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text())}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_the_version_is_one() -> None:
    assert re.search(rf"^## \[{re.escape(__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert str(citation["version"]) == __version__
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]


def files(pattern: str) -> list[Path]:
    """The project's files, without those of environments and caches."""
    return sorted(
        path
        for top in (ROOT, *(ROOT / name for name in ("docs", *FOLDERS) if name != "clip_queue"))
        for path in (top.glob(pattern) if top == ROOT else top.rglob(pattern))
    )


def docstrings(path: Path) -> str:
    tree = ast.parse(path.read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds))


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something that its file defines; no module is imported for it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if not file.is_file():
            continue
        rest = parts[length:]
        return not rest or rest[0] in defined(file)
    return False


@lru_cache
def defined(file: Path) -> set[str]:
    """The names that a module's file defines, imports or offers in its ``__all__``."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            found |= names | (set(ast.literal_eval(node.value)) if names == {"__all__"} else set())
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return found


ENTRY_POINTS = {"clip_queue.job_handlers"}
OLD = {"clip_queue.work"}  # in the changelog


def test_modules_that_pages_and_docstrings_name_exist() -> None:
    checked = 0
    for path in files("*.md") + files("*.py"):
        text = path.read_text() if path.suffix == ".md" else docstrings(path)
        for name in MODULE.findall(text):
            checked += 1
            if name in ENTRY_POINTS or (name in OLD and path.name == "CHANGELOG.md"):
                continue
            assert exists(name), f"{path.relative_to(ROOT)} names {name}"
    assert checked > 20


def test_names_are_told_from_none() -> None:
    assert exists("clip_queue.shared.settings")
    assert exists("clip_queue.shared.settings.Settings")
    assert exists("clip_queue.api.app")
    assert not exists("clip_queue.shared.setting")
    assert not exists("clip_queue.shared.settings.Setting")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench").glob("[a-z]*.py")))
def test_every_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(f"bench.{name}")
