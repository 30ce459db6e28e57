"""What ``clip-queue search`` prints, and the image that it searches for."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue.bulk.search.index import Hit
from clip_queue.cli.search import MAX_CAPTION, read_image, shortened, show
from clip_queue.shared.errors import BadInput
from tests.unit.cli.printing import console, printed

HITS = [Hit(1, 0.5, 0, 0, "a\tb.jpg", "a [bold]cat[/]\non a mat", {}), Hit(2, 0.25, 0, 1, None, None, {})]


def test_a_log_has_a_line_a_hit_with_tabs_between() -> None:
    out = console()
    show(out, HITS)
    assert printed(out) == "1\t0.500000\ta\\tb.jpg\ta [bold]cat[/]\\non a mat\n2\t0.250000\t\t\n"


def test_a_terminal_has_a_table_of_the_columns_that_are_filled() -> None:
    out = console(terminal=True)
    show(out, HITS)
    text = printed(out)
    assert "path" in text
    assert "a [bold]cat[/] on a mat" in text
    out = console(terminal=True)
    show(out, HITS[1:])
    assert "path" not in printed(out)
    assert "caption" not in printed(out)


def test_long_captions_are_cut() -> None:
    assert shortened("a  b\nc") == "a b c"
    cut = shortened("word " * 100)
    assert len(cut) <= MAX_CAPTION
    assert cut.endswith("word…")


def test_an_image_is_read_up_to_the_limit_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"12345")
    assert read_image(str(tmp_path / "image"), 10) == b"12345"
    assert len(read_image(str(tmp_path / "image"), 3)) == 4, "so that decoding sees that it is too large"
    with pytest.raises(BadInput, match="none cannot be read: No such file or directory"):
        read_image(str(tmp_path / "none"), 10)
