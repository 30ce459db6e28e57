"""What a command says of its settings, in the words in which they were given."""

from __future__ import annotations

from clip_queue.cli.settings import as_typed
from clip_queue.stack.machine import OTHER_FOLDER


def test_an_option_that_was_given_is_named_once() -> None:
    assert as_typed(OTHER_FOLDER, data_dir="/proc/x") == "choose another folder with --data-dir"
    assert as_typed(OTHER_FOLDER, data_dir=None) == OTHER_FOLDER
    assert as_typed("see CLIP_QUEUE_MODELS", models=["m"]) == "see --model"
