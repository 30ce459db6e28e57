"""A worker's start does not import what its passes do not use, and whatever uses it has it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

HEAVY = (
    "torch._dynamo",
    "torch._dynamo.utils",
    "sympy",
    "timm",
    "transformers",
    "torch.distributed.fsdp",
    "torch._inductor",
)
START = f"""
import json, sys
import numpy as np
from clip_queue.shared.models import CATALOGUE
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel
found = {{}}
def note(name):
    found[name] = [heavy for heavy in {HEAVY} if heavy in sys.modules]
"""
PASS = """
model = ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu", resize="fast", precision="bf16"))
model.embed_images([np.zeros((*model.image_size, 3), np.uint8)]).result()
model.embed_texts([model.tokenizer("a")]).result()
note("a pass")
"""
TIMM = """
import torch, open_clip
from open_clip.model import CLIP
text = {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 1, "layers": 1}
towers = [CLIP(8, {"timm_model_name": "test_vit", "image_size": 160}, text).eval() for _ in range(2)]
with torch.inference_mode():
    found["shapes"] = [list(tower.encode_image(torch.zeros(1, 3, 160, 160)).shape) for tower in towers]
found["names"] = [f"{type(tower.visual).__module__}.{type(tower.visual).__name__}" for tower in towers]
note("a tower of timm")
"""
HUGGING_FACE = """
import torch, transformers
from open_clip.model import _build_text_tower
found["hidden"] = sys.modules["open_clip.hf_model"].transformers is None
vision = transformers.RobertaConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
                                    intermediate_size=16)
vision.save_pretrained(sys.argv[1])
text = {"hf_model_name": sys.argv[1], "hf_model_pretrained": False, "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler"}
tower = _build_text_tower(8, text).eval()
with torch.inference_mode():
    found["shape"] = list(tower(torch.ones(2, 5, dtype=torch.long)).shape)
found["name"] = f"{type(tower).__module__}.{type(tower).__name__}"
"""
COMPILER = """
import torch
from torchvision.ops.roi_align import is_compile_supported
supported = is_compile_supported("cpu")
note("the compiler")
import torch._dynamo.utils
found["same"] = supported == torch._dynamo.utils.is_compile_supported("cpu")
found["compiled"] = torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(2)).tolist()
"""
OTHER = """
from clip_queue.worker.inference import libraries
with libraries._lean():
    import torch
    @torch.compiler.disable
    def plain(): return "plain"
    @torch.compiler.disable(recursive=False, reason="a test")
    def called(): return "called"
    found["decorated"] = [plain(), called()]
    note("decorating")
    from torch._dynamo.utils import counters, is_compile_supported
    from torch._dynamo import reset
note("another release of torchvision")
import torch._dynamo.utils as real
found["same"] = [counters is real.counters, is_compile_supported("cpu") == real.is_compile_supported("cpu")]
found["module"] = reset.__module__
"""


def found(*parts: str, argument: str = "") -> dict[str, object]:
    """What a new process says."""
    code = "".join((START, *parts, "\nprint(json.dumps(found))"))
    run = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert run.returncode == 0, run.stderr
    out: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return out


@pytest.fixture(scope="module")
def said() -> dict[str, object]:
    return found(PASS, TIMM, COMPILER)


def test_a_pass_needs_neither_the_compiler_nor_timm(said: dict[str, object]) -> None:
    assert said["a pass"] == []


def test_a_tower_of_timm_brings_timm(said: dict[str, object]) -> None:
    assert said["shapes"] == [[1, 8], [1, 8]]
    assert said["names"] == ["open_clip.timm_model.TimmModel"] * 2
    assert "timm" in said["a tower of timm"]  # type: ignore[operator]


def test_a_tower_of_hugging_face_is_built_by_its_library(tmp_path: Path) -> None:
    said = found(HUGGING_FACE, argument=str(tmp_path))
    assert said["hidden"] is True
    assert said["shape"] == [2, 8]
    assert said["name"] == "open_clip.hf_model.HFTextEncoder"


def test_the_compiler_comes_when_it_is_asked_for(said: dict[str, object]) -> None:
    assert {"torch._dynamo", "torch._dynamo.utils"} <= set(said["the compiler"])  # type: ignore[call-overload]
    assert said["same"] is True
    assert said["compiled"] == [1.0, 1.0]


def test_libraries_that_want_more_of_the_compiler_get_it() -> None:
    said = found(OTHER)
    assert said["decorated"] == ["plain", "called"]
    # In their place, and nothing of what they would bring.
    in_their_place = ["torch._dynamo", "torch._dynamo.utils", "timm", "transformers"]
    assert said["decorating"] == in_their_place
    assert "torch._dynamo" in said["another release of torchvision"]  # type: ignore[operator]
    assert said["same"] == [True, True]
    assert said["module"] == "torch._dynamo"


def test_nothing_else_of_the_worker_imports_them() -> None:
    for path in (ROOT / "worker").rglob("*.py"):
        if path.name == "libraries.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {"open_clip", "torchvision", "timm"} & {name.partition(".")[0] for name in names}, path
