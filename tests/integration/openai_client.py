"""Run in an environment that has the unmodified openai: ``python openai_client.py URL FOLDER KEY WRONG_KEY``.

Calls what embeds, plain and async, and prints as JSON what came back or was raised. It imports nothing of this project.
``FOLDER`` holds ``dog.png``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import APIError, AsyncOpenAI, OpenAI


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or what it raises, with its status and what the server says of it."""
    try:
        result = call()
        result = asyncio.run(result) if asyncio.iscoroutine(result) else result
        return result.model_dump() if hasattr(result, "model_dump") else result
    except APIError as error:
        told = {name: getattr(error, name, None) for name in ("status_code", "code", "param", "type", "request_id")}
        return {"raised": type(error).__name__, "message": str(error), **told}


def main(url: str, folder: Path, key: str, wrong_key: str) -> dict[str, Any]:
    base = f"{url}/v1"
    image = "data:image/png;base64," + base64.b64encode((folder / "dog.png").read_bytes()).decode()
    words = ["dog face", "pizza"]
    many = [f"thing {i}" for i in range(2048)]
    embeds: dict[str, dict[str, Any]] = {
        "one text": {"input": words[0]},
        "texts and an image": {"input": [*words, image], "user": "somebody"},
        "numbers": {"input": words, "encoding_format": "float"},
        "the model's own dimensions": {"input": words, "dimensions": 128},
        "as many as fit": {"input": many},
        "images by modality": {"input": [image], "extra_body": {"modality": "image"}},
        "one bad input": {"input": ["a", "b", "data:image/png;base64,bm8gcGljdHVyZQ=="]},
        "too long": {"input": ["word " * 200]},
        "tokens": {"input": [1, 2, 3]},
        "other dimensions": {"input": words, "dimensions": 64},
        "too many": {"input": ["a"] * 2049},
        "unknown model": {"input": words, "model": "text-embedding-3-large"},
        "alias": {"input": words, "model": "text-embedding-3-small"},
    }
    seen: dict[str, Any] = {}
    plain = OpenAI(base_url=base, api_key=key, max_retries=0)
    for name, given in embeds.items():
        wanted = {"model": "emoji-mini", **given}
        seen[name] = outcome(lambda wanted=wanted: plain.embeddings.create(**wanted))  # type: ignore[misc]

        async def ask(wanted: dict[str, Any] = wanted) -> Any:
            async with AsyncOpenAI(base_url=base, api_key=key, max_retries=0) as client:
                return await client.embeddings.create(**wanted)

        seen[f"{name}, async"] = outcome(ask)
    wrong = OpenAI(base_url=base, api_key=wrong_key, max_retries=0)
    seen["wrong key"] = outcome(lambda: wrong.embeddings.create(model="emoji-mini", input="a"))
    seen["wrong key, models"] = outcome(wrong.models.list)
    seen["models"] = outcome(plain.models.list)
    seen["model"] = outcome(lambda: plain.models.retrieve("text-embedding-3-small"))
    raw = plain.embeddings.with_raw_response.create(model="emoji-mini", input="a")
    seen["sent by default"] = json.loads(raw.http_request.content)
    seen["headers"] = dict(raw.headers)
    return seen


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:5])))
