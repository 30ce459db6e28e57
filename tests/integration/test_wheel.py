"""The distribution as users get it: built, installed into a fresh environment, and used where other packages have the
names of its folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from clip_queue.stack.machine import free_port
from clip_queue.version import __version__
from tests.harness import ROOT, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FOLDERS = ("api", "bulk", "cli", "client", "shared", "sources", "stack", "worker")
READY = 180.0  # seconds that a service may take to start on a loaded machine
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv") or "uv"
# Nothing of this checkout, of the environment of the tests or of other tests' settings.
ENV = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("CLIP_QUEUE_", "PYTEST_", "PYTHON")) and name != "VIRTUAL_ENV"
}


def run(command: list[str], cwd: Path, timeout: float = 300.0) -> str:
    """What a command says; it must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**ENV, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, into: Path) -> Path:
    run([UV, "build", f"--{kind}", "--out-dir", str(into), str(source)], into)
    (made,) = into.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with hatchling in an environment of its own, as pip and uv build it."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


class Installed:
    """A fresh environment."""

    def __init__(self, folder: Path) -> None:
        run([UV, "venv", "--python", sys.executable, str(folder)], folder.parent)
        self.bin = folder / "bin"
        (self.site,) = folder.glob("lib/python*/site-packages")

    def install(self, *arguments: str) -> None:
        run([UV, "pip", "install", "--python", str(self.bin / "python"), *arguments], ROOT, timeout=500)

    def uninstall(self) -> None:
        run([UV, "pip", "uninstall", "--python", str(self.bin / "python"), "clip-queue"], ROOT)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With the extra that users are told of; the versions are those of this checkout."""
    it = Installed(tmp_path_factory.mktemp("installed") / "env")
    it.install("--constraint", "requirements.lock", f"clip-queue[serve] @ {wheel.as_uri()}")
    return it


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder to work in that has packages of the same names as the project's folders. Importing one is an error."""
    for name in FOLDERS:
        package = tmp_path / "elsewhere" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise RuntimeError('this is another {name}')\n")
    return tmp_path / "elsewhere"


def contents(wheel: Path) -> dict[str, int]:
    """Names of files, and checksums."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


def test_it_owns_one_import_name_and_has_what_it_needs(wheel: Path) -> None:
    names = set(contents(wheel))
    assert {name.partition("/")[0] for name in names} == {"clip_queue", f"clip_queue-{__version__}.dist-info"}
    parts = {name.split("/")[1] for name in names if name.startswith("clip_queue/")}
    assert parts == {"__init__.py", "version.py", "py.typed", *FOLDERS}
    data = [
        path.relative_to(ROOT)
        for pattern in ("shared/lua/*.lua", "worker/checkpoints/*/*", "cli/samples/*", "api/static/*")
        for path in ROOT.glob(pattern)
    ]
    assert len(data) > 30
    assert {f"clip_queue/{path}" for path in data} <= names
    assert {f"clip_queue-{__version__}.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= names
    code = {path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert {f"clip_queue/{path}" for path in code} == {name for name in names if name.count("/") > 1} & {
        name for name in names if name.endswith(".py")
    }
    assert not any(part in name for name in names for part in ("__pycache__", "tests/", "bench/", "training/"))


def test_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = Parser().parsestr(archive.read(f"clip_queue-{__version__}.dist-info/METADATA").decode())
        entry_points = archive.read(f"clip_queue-{__version__}.dist-info/entry_points.txt").decode()
    assert found["Version"] == __version__
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert "serve" in (found.get_all("Provides-Extra") or [])
    assert "clip-queue = clip_queue.cli.main:app" in entry_points
    assert "[clip_queue.job_handlers]\nembed_dataset = clip_queue." in entry_points
    assert "\nembed_shard = clip_queue." in entry_points


def test_the_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """The links of the package are real folders in it."""
    (tmp_path / "again").mkdir()
    again = build("wheel", build("sdist", ROOT, tmp_path), tmp_path / "again")
    assert contents(again) == contents(wheel)


def test_uninstalling_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    it = Installed(tmp_path / "env")
    before = sorted(path for folder in (it.site, it.bin) for path in folder.iterdir())
    it.install("--no-deps", str(wheel))
    run([str(it.bin / "python"), "-m", "compileall", "-q", str(it.site / "clip_queue")], tmp_path)
    added = {path.name for path in it.site.iterdir()} - {path.name for path in before}
    assert added == {"clip_queue", f"clip_queue-{__version__}.dist-info"}
    it.uninstall()
    assert sorted(path for folder in (it.site, it.bin) for path in folder.iterdir()) == before


def test_the_command_and_the_public_face(installed: Installed, elsewhere: Path) -> None:
    assert run([str(installed.bin / "clip-queue"), "--version"], elsewhere) == f"clip-queue {__version__}\n"
    code = (
        "import clip_queue, clip_queue.worker.executor.handlers as handlers;"
        "from clip_queue import AsyncClient, Client, Settings, __version__, dry_run, embed, search;"
        "print(clip_queue.__file__, __version__, *handlers.load_handlers())"
    )
    where, version, *kinds = run([str(installed.bin / "python"), "-c", code], elsewhere).split()
    assert Path(where).is_relative_to(installed.site)
    assert (version, kinds) == (__version__, ["embed_dataset", "embed_shard"])


@pytest.fixture
def up(installed: Installed, elsewhere: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a ``clip-queue up``, ready to serve."""
    port, log = free_port(), tmp_path / "up.log"
    command = [str(installed.bin / "clip-queue"), "up", "--port", str(port), "--data-dir", str(tmp_path / "data")]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=elsewhere, env=ENV, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: ready(url) or process.poll() is not None, READY, "the service")
        assert process.poll() is None, log.read_text()
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait(10)
            for child in children:
                if child.is_running():
                    child.kill()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readiness", timeout=10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_it_serves(up: str) -> None:
    answer = httpx.post(f"{up}/clip/embed_text", json={"text": ["red heart", "dog"]}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert np.array(answer.json()["embeddings"]).shape == (2, 128)
    page = httpx.get(f"{up}/", headers={"Accept": "text/html"}, timeout=10, trust_env=False)
    assert "clip-queue</title>" in page.text
    assert httpx.get(f"{up}/page/try.js", timeout=10, trust_env=False).status_code == 200
    assert httpx.get(f"{up}/info", timeout=10, trust_env=False).json()["version"] == __version__


def test_it_embeds_and_searches(installed: Installed, elsewhere: Path) -> None:
    names = ("banana", "dog", "rocket")
    (elsewhere / "images").mkdir()
    for name in names:
        shutil.copy(ROOT / f"cli/samples/{name}.png", elsewhere / "images")
        (elsewhere / f"images/{name}.txt").write_text(name)
    command = str(installed.bin / "clip-queue")
    run([command, "embed", "images", "vectors", "--workers", "1"], elsewhere)
    for kind in ("img_emb", "text_emb"):
        assert np.load(elsewhere / f"vectors/{kind}/{kind}_0.npy").shape == (3, 128)
    found = run([command, "search", "vectors", "dog", "--top", "1"], elsewhere)
    assert "dog.png" in found
    (elsewhere / "lines.txt").write_text("one\ntwo\n")
    code = (
        "import json; from clip_queue import embed, search;"
        "report = embed('lines.txt', 'lines', workers=1);"
        "print(json.dumps([report.rows, report.failed, *(hit.caption for hit in search('lines', 'two', top=1))]))"
    )
    said = run([str(installed.bin / "python"), "-c", code], elsewhere)
    assert json.loads(said.splitlines()[-1]) == [2, 0, "two"]
