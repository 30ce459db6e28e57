"""The model itself, beside the served one; a stack whose worker can be made to fail; a TLS site and who may fetch."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import trustme

from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.models import CATALOGUE
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel
from tests import datasets
from tests.bulk_team import ATTEMPTS, ROWS, run
from tests.harness import stack
from tests.outputs import checksums
from tests.reference import Reference
from tests.team import Team

from .tls_site import LIMIT, PRIVATE, Make, Names, Resolver, Site, answer


@pytest.fixture(scope="session")
def clip() -> ClipModel:
    """The session worker's model at its precision, in this process."""
    return ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu", precision="fp32"))


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The same model, as open_clip alone has it."""
    return Reference()


@pytest.fixture(scope="session")
def solo_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with stack(tmp_path_factory.mktemp("solo"), forward_timeout=10, interactive_jobs=True) as it:
        yield Team.start(it, 1)


@pytest.fixture
def solo(solo_stack: Team) -> Team:
    """One worker, healthy until told otherwise, and an API without keys where jobs may be interactive."""
    solo_stack.heal()
    return solo_stack


@pytest.fixture(scope="session")
def brief(solo_stack: Team) -> Iterator[httpx.Client]:
    """A client of an API that keeps results for a moment, waits for a moment, and whose streams beat often."""
    solo_stack.heal()  # the file before may have left its worker broken
    api = solo_stack.another_api(
        "tests.brisk:app", result_ttl=1.5, max_wait=0.5, max_job_items=4, interactive_jobs=False
    )
    with api.client() as client:
        yield client
    api.stop()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who has signed the site's certificate."""
    return trustme.CA()


@pytest.fixture
async def site(authority: trustme.CA) -> AsyncIterator[Site]:
    """A site of one file, ``/a.png``, for tests to add to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("images.test", "other.test", "xn--bcher-kva.test", "127.0.0.1").configure_cert(context)
    site = Site({"/a.png": answer()})
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    server.close()


@pytest.fixture
async def make(authority: trustme.CA) -> AsyncIterator[Make]:
    """Fetchers that trust the authority, know the test's names and may go to 127.0.0.1."""
    made: list[Fetcher] = []

    def make(names: Names | None = None, *, resolve: Resolver | None = None, **settings: object) -> Fetcher:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        known = {"images.test": ["127.0.0.1"], "other.test": ["127.0.0.1"], "private.test": [PRIVATE], **(names or {})}
        chosen = {"fetch_allow_networks": ["127.0.0.1/32"], "max_image_bytes": LIMIT, "fetch_timeout": 10, **settings}
        made.append(Fetcher(Settings.model_validate(chosen), ssl_context=context, look_up=resolve or Resolver(known)))
        return made[-1]

    yield make
    for fetcher in made:
        await fetcher.aclose()


@pytest.fixture(scope="module")
def pair_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with (
        pytest.MonkeyPatch.context() as patch,
        stack(tmp_path_factory.mktemp("bulk pair"), lease=2, drain_timeout=20, max_attempts=ATTEMPTS) as it,
    ):
        patch.setenv("OMP_NUM_THREADS", "1")  # bytes are the same for the same number of threads
        # Every write is on disk before it is answered, so that even kill -9 may not lose one.
        it.valkey.client().config_set("appendfsync", "always")
        it.valkey.command += ["--appendfsync", "always"]
        yield Team.start(it, 2)


@pytest.fixture
def pair(pair_stack: Team) -> Team:
    """Two workers on one core each, quick to be missed."""
    pair_stack.heal()
    return pair_stack


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    return datasets.folder(tmp_path_factory.mktemp("bulk source") / "in", ROWS)


@pytest.fixture(scope="module")
def whole(pair_stack: Team, source: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksums of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("bulk whole") / "out"
    assert run(pair_stack, source.url, output).status == 3
    return checksums(output)
