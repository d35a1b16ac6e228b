"""What a program does not import: torch on MLX, and what no backend asks transformers for."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import backends
from backends.unseen import Blind, hidden
from gsm8k_core.models.tokenizer import load_tokenizer
from tests.e2e.conftest import ROOT

TEXT = "Tom has 2 apples . how many ?"
HEAVY = {"torch", "accelerate", "datasets", "scipy", "wandb"}
STARTS = """
import sys
from pathlib import Path
import backends
backends.keep_to_one()
name = backends.resolve({name!r}).name
backends.open(name, Path({folder!r}), "cpu", "float32")
from gsm8k_core.models.tokenizer import load_tokenizer
print(load_tokenizer(Path({folder!r}))({text!r}).input_ids)
print(*{heavy!r} & sys.modules.keys())
import torch, transformers
print(torch.ones(2).sum().item(), transformers.is_torch_available())
"""


def test_a_program_imports_no_framework_but_its_own(qwen2: Path) -> None:
    """The other one can still be imported: only transformers has not seen it."""
    code = STARTS.format(name="mlx", folder=str(qwen2), text=TEXT, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(load_tokenizer(qwen2)(TEXT).input_ids), "", "2.0 False"], done.stderr
    assert "PyTorch was not found" not in done.stderr


def test_torch_is_seen_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(backends, "_resolved", set())
    monkeypatch.setattr("backends.unseen.hide", asked.append)
    backends.keep_to_one()
    (packages,) = asked
    assert "torch" in packages()
    backends.resolve("torch")
    assert packages() == ["mlx", "mlx_lm"]


@pytest.fixture
def asker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that asks for others when it is imported."""
    (tmp_path / "asks_others").mkdir()
    code = (
        "from importlib.util import find_spec\nthere = {name: find_spec(name) is not None for name in ('gone', 'left')}"
    )
    (tmp_path / "asks_others/__init__.py").write_text(code)
    for name in ("gone", "left"):
        (tmp_path / f"{name}.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(sys.modules, "asks_others", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "asks_others"


def test_a_hidden_package_is_hidden_from_the_one_alone(asker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [Blind(asker, lambda: ("gone",)), *sys.meta_path])
    assert find_spec(asker) is not None  # it was looked for, and not imported
    module = __import__(asker)
    assert module.there == {"gone": False, "left": True}
    assert not any(isinstance(finder, Blind) for finder in sys.meta_path)
    assert type(module.__loader__) is type(module.__spec__.loader) is not Blind
    assert __import__("gone").__name__ == "gone"


def test_what_was_imported_before_stays(asker: str) -> None:
    gone = __import__("gone")
    with hidden(["gone", "left"]) as names:
        assert names == ["left"]
        assert sys.modules["gone"] is gone
        with pytest.raises(ImportError):
            __import__("left")
    assert __import__("left").__name__ == "left"
    assert sys.modules["gone"] is gone
