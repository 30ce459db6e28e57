"""Run in an environment that has the clients: ``python client_recipes.py RECIPES.json``, where ``dog.png`` is.

Runs each recipe, and prints as JSON what its variables hold that are vectors or numbers, or what it raised. It imports
nothing of this project.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """A value as lists of numbers; None if it is something else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple) and value:
        parts = [plain(part) for part in value]
        return None if None in parts else parts
    return None


def outcome(code: str) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    try:
        exec(compile(code, "recipe", "exec"), variables)
    except Exception:
        return {"raised": traceback.format_exc()}
    return {name: seen for name, value in variables.items() if (seen := plain(value)) is not None}


def main(recipes: dict[str, str]) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    return {name: outcome(code) for name, code in recipes.items()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
