"""Whether a run that came over HTTP may be led here: the worker's look, after the API's."""

from __future__ import annotations

import os

from clip_queue.bulk.output.errors import ForeignOutput, OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.shared.owners import OPEN
from clip_queue.shared.roots import OutsideRoots, check_output, check_source, folder_of, is_under
from clip_queue.shared.runs import RunRequest
from clip_queue.shared.settings import Settings
from clip_queue.sources.confinement import WHY, roots_of

OWNER = ".owner"  # the file of an output that says whose it is, as a digest of the key


def claim_output(output: Output, owner: str) -> None:
    """Note whose an output is, or see that it is this owner's: one key never sees another's run, nor its report.

    Raises:
        ForeignOutput: it is another key's.
        OutputError: it cannot be written.
    """
    if owner == OPEN:
        return
    try:
        found = output.read(OWNER)
        if found is None:
            output.write(OWNER, owner.encode())
        elif found.decode(errors="replace").strip() != owner:
            raise ForeignOutput(f"{output.url} belongs to the run of another key: choose another output")
    except OSError as error:
        raise OutputError.because(error) from error


def check_request(request: RunRequest, settings: Settings) -> None:
    """Look at a request as the API has done, and at where its paths really lead on this machine.

    Raises:
        OutsideRoots, BadInput: it is not allowed here. The message says which setting is to blame.
    """
    for setting in ("bulk_sources", "bulk_outputs"):
        if not getattr(settings, setting):
            raise OutsideRoots(
                f"The worker that was to lead the run allows none: set CLIP_QUEUE_{setting.upper()} for the workers as "
                "well as for the API."
            )
    sources = [check_source(each, settings.bulk_sources) for each in request.source]
    read = [*sources, *([request.options["image_root"]] if request.options.get("image_root") else [])]
    output = check_output(request.output, settings.bulk_outputs, sources)
    inside, below = roots_of(tuple(settings.bulk_sources)), roots_of(tuple(settings.bulk_outputs))
    for each in read:
        check_source(each, settings.bulk_sources)
        if each.startswith("/") and not inside.hold(folder_of(each)):
            raise OutsideRoots(f"{each} {WHY}.")
    if output.startswith("/"):
        for path in (output, *_links(output)):
            if not below.hold(path):
                raise OutsideRoots(f"{path} leads out of the places that may be written (setting bulk_outputs).")
        real = os.path.realpath(output)
        for each in sources:
            if each.startswith("/") and is_under(real, os.path.realpath(folder_of(each))):
                raise OutsideRoots(f"{output} lies in the source {each}: choose another output.")


def _links(folder: str) -> list[str]:
    """The links in a folder, if it exists."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return []
