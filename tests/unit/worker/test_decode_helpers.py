"""Helper processes: what overstays is ended, its neighbours are not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from clip_queue.shared.errors import BadImage, Unavailable
from clip_queue.worker.inference.decode import decode
from clip_queue.worker.inference.decode_helper import READY, REQUEST
from clip_queue.worker.inference.decode_helpers import COMMAND, DecodeHelpers, Unwanted, environment
from clip_queue.worker.inference.image_limits import Limits
from tests.harness import wait_for
from tests.images import noise_image

LIMITS = Limits(1 << 26, 10_000_000)
GOOD = noise_image(3, format="TIFF")

# A helper whose decoder never comes back, for images that say so, and holds the interpreter meanwhile.
STUCK = """
import re, sys
from clip_queue.worker.inference import decode_helper
decode = decode_helper._decode
def stuck(data, limits, draft):
    if data == b"hang":
        re.match(r"(a|a)*b", "a" * 60)
    if data == b"die":
                os.abort()
    return decode(data, limits, draft)
decode_helper._decode = stuck
decode_helper.main()
"""


@pytest.fixture
def helpers() -> Iterator[Any]:
    made: list[DecodeHelpers] = []

    def make(count: int = 1, timeout: float = 20.0, memory: int | None = None) -> DecodeHelpers:
        made.append(DecodeHelpers(count, LIMITS, timeout, memory=memory, command=(sys.executable, "-c", STUCK)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # ended by now, or a zombie that another test has left
            if "decode_helper" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_helper_gives_the_pixels_that_a_thread_gives(helpers: Any) -> None:
    expected = decode(GOOD, np.asarray, max_bytes=LIMITS.bytes, max_pixels=LIMITS.pixels)
    pool = helpers()
    for _ in range(3):
        np.testing.assert_array_equal(np.asarray(pool.to_rgb(GOOD)), expected)
    assert len(children()) == 1


def test_a_refusal_has_the_message_that_a_thread_gives(helpers: Any) -> None:
    with pytest.raises(BadImage, match=r"^Could not load input image. Cause: Data is not image.$"):
        helpers().to_rgb(b"<html>")


def test_a_decode_that_overstays_is_ended_and_the_next_image_is_decoded(helpers: Any) -> None:
    others = children()
    pool = helpers(timeout=4)  # which a good image has on a loaded machine as well
    pool.to_rgb(GOOD)
    before = [process for process in children() if process not in others]
    assert len(before) == 1
    with pytest.raises(BadImage, match=r"Decoding took longer than 4 s \(setting decode_timeout\)"):
        pool.to_rgb(b"hang")
    assert not psutil.wait_procs(before, 30)[1]
    assert pool.to_rgb(GOOD).size == (96, 80)


def test_what_hangs_holds_up_no_neighbour(helpers: Any) -> None:
    pool = helpers(count=2, timeout=60)
    pool.to_rgb(GOOD)
    errors: list[BadImage] = []

    def hang() -> None:
        try:
            pool.to_rgb(b"hang")
        except BadImage as error:
            errors.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.1)
    assert pool.to_rgb(GOOD).size == (96, 80)
    assert errors == [], "it still hangs"
    pool.close()
    thread.join(30)
    assert len(errors) == 1


def test_closing_while_a_process_starts_ends_it_and_its_image_says_so() -> None:
    others = children()
    pool = DecodeHelpers(1, LIMITS, 60, command=(sys.executable, "-c", "import time; time.sleep(60)", "decode_helper"))
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            pool.to_rgb(GOOD)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: set(children()) - set(others), what="the process to be started")
    pool.close()
    thread.join(30)
    assert [type(error) for error in raised] == [BadImage]
    assert str(raised[0]).endswith("The worker is stopping.")
    assert set(children()) <= set(others)
    with pytest.raises(BadImage, match="stopping"):
        pool.to_rgb(GOOD)
    assert set(children()) <= set(others), "closed, it starts no other"


def test_a_helper_that_dies_fails_its_image_alone(helpers: Any) -> None:
    pool = helpers()
    with pytest.raises(BadImage, match="ended the process"):
        pool.to_rgb(b"die")
    assert pool.to_rgb(GOOD).size == (96, 80)
    (idle,) = children()
    idle.kill()  # while it is idle: the next image must not pay for it
    until = time.monotonic() + 30
    while idle.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.01)
    assert pool.to_rgb(GOOD).size == (96, 80)


def test_the_wait_for_a_free_helper_has_a_limit() -> None:
    pool = DecodeHelpers(1, LIMITS, 5.0, free_timeout=0.1)
    helper = pool._idle.get()  # it is another image's
    with pytest.raises(Unavailable, match=r"was free within 0\.1 s"):
        pool.to_rgb(GOOD)
    pool._idle.put(helper)
    assert pool.to_rgb(GOOD).size == (96, 80)
    pool.close()


def test_an_image_for_which_nobody_waits_any_more_starts_no_helper(helpers: Any) -> None:
    pool = helpers()
    for _ in range(3):
        with pytest.raises(Unwanted):
            pool.to_rgb(b"hang", wanted=lambda: False)
    assert pool._helpers[0]._process is None
    assert pool._idle.qsize() == 1, "the helper is free again"


def test_a_killed_process_that_does_not_end_is_left_behind(
    helpers: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = helpers()
    pool.to_rgb(GOOD)
    process = pool._helpers[0]._process

    def held(timeout: float | None = None) -> int:
        assert timeout is not None, "without a limit it would be waited for without end"
        raise subprocess.TimeoutExpired("x", timeout)

    with monkeypatch.context() as patch:
        patch.setattr(process, "wait", held)
        pool._helpers[0]._end()
    assert f"process {process.pid}, which decoded images, was killed and has not ended" in caplog.text
    process.wait(10)
    assert pool.to_rgb(GOOD).size == (96, 80)


def test_helpers_end_with_what_owns_them(helpers: Any) -> None:
    pool = helpers()
    pool.to_rgb(GOOD)
    owned = children()
    pool.close()
    assert owned
    assert not children()


def test_helpers_end_with_their_parent_however_it_ends() -> None:
    script = """
import os, sys
from clip_queue.worker.inference.decode_helpers import DecodeHelpers, environment
from clip_queue.worker.inference.image_limits import Limits
pool = DecodeHelpers(1, Limits(1 << 26, 10_000_000), 5.0)
pool.to_rgb(sys.stdin.buffer.read())
print(pool._helpers[0]._process.pid, flush=True)
os._exit(9)
"""
    run = subprocess.run([sys.executable, "-c", script], input=GOOD, capture_output=True, timeout=60)
    pid = int(run.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_helper_has_no_secrets_and_no_torch(helpers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_API_KEYS", "secret")
    assert "CLIP_QUEUE_API_KEYS" not in environment()
    code = "import sys, clip_queue.worker.inference.decode_helper; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_a_helpers_memory_is_bounded(helpers: Any) -> None:
    pool = helpers(memory=8 * LIMITS.pixels)
    data = b"P6 3000 3000 255\n" + bytes(27_000_000)
    with pytest.raises(BadImage, match=r"memory|ended"):
        pool.to_rgb(data)


def test_pixels_of_a_large_image_come_whole(helpers: Any) -> None:
    image = Image.effect_noise((2000, 1500), 90)
    data = b"P5 2000 1500 255\n" + image.tobytes()
    np.testing.assert_array_equal(np.asarray(helpers().to_rgb(data).getchannel("R")), np.asarray(image))


def test_it_ends_without_a_word_when_its_worker_has_ended() -> None:
    process = subprocess.Popen(
        (*COMMAND, str(2**30)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.read(len(READY))
    process.stdout.close()
    process.stdin.write(REQUEST.pack(len(GOOD), 2**20, 2**20, 2**30, 0, 10) + GOOD)
    _, said = process.communicate(timeout=30)
    assert (said, process.returncode) == (b"", 0)
