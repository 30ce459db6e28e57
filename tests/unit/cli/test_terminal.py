"""Text that is printed on a terminal."""

from __future__ import annotations

from clip_queue.cli.terminal import print_line, printable
from tests.unit.cli.printing import console, printed


def test_control_characters_are_escaped_and_the_rest_stays() -> None:
    assert printable("naïve 東京 🙂 [bold]") == "naïve 東京 🙂 [bold]"
    assert printable("a\x1b[31m\nb\tc\u2028d") == "a\\x1b[31m\\nb\\tc\\u2028d"


def test_a_line_is_never_wrapped() -> None:
    out = console(width=10)
    print_line(out, "[bold]a path/that is/longer than/the terminal[/]")
    assert printed(out) == "a path/that is/longer than/the terminal\n"
