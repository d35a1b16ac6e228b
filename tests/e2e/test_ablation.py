"""benchmarks/ablation.py: leaving a part out leaves the work as it is, and really leaves that part out."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from backends import installed
from benchmarks import work
from gsm8k_core.types import GSM8KError

# Nats per target; measured over all parts: 1e-6 and (without the mask, in bfloat16) 1.3e-3.
SAME = {"float32": 5e-6, "bfloat16": 5e-3}
CASES = [("torch", "full", "float32"), ("torch", "full", "bfloat16"), ("torch", "lora", "float32")]
CASES += [("mlx", "full", "float32"), ("mlx", "lora", "float32")]


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Any:
    from benchmarks import ablation, measure

    monkeypatch.setattr(measure, "GEMM_SIZES", {"cpu": 64, "gpu": 64})
    return ablation


Job = Callable[[str, str, str], Any]


@pytest.fixture
def make(ablation: Any, model: Path, data: Path, tmp_path: Path) -> Job:
    def make(backend: str, method: str, dtype: str) -> Any:
        if not installed(backend):
            pytest.skip(f"{backend} is not installed here")
        asked = argparse.Namespace(
            backend=backend, model=str(model), data=str(data), rows=16, rounds=1, method=method, dtype=dtype
        )
        return ablation.make_job(asked, tmp_path)

    return make


def losses(ablation: Any, job: Any, part: str) -> list[float]:
    path = job.out.with_name("job.json")
    path.write_text(job.model_dump_json())
    ablation.run_without(path, part)
    return list(json.loads(job.out.read_bytes())["losses"])


@pytest.mark.parametrize(("backend", "method", "dtype"), CASES)
def test_without_a_part_the_work_is_the_same(ablation: Any, make: Job, backend: str, method: str, dtype: str) -> None:
    job = make(backend, method, dtype)
    whole = losses(ablation, job, ablation.ALL)
    assert whole[0] > whole[2]  # the same rows, after two updates
    for part in ablation.parts_of(job):
        with ExitStack() as stack:
            counts = [_counted(stack, patch) for patch in ablation.PARTS[backend][part](job)]
            found = losses(ablation, job, ablation.ALL)
        assert all(count[0] for count in counts), f"what takes the place of {part} does not run"
        assert found == pytest.approx(whole, abs=SAME[dtype]), part
    assert losses(ablation, job, ablation.NONE) == pytest.approx(whole, abs=SAME[dtype])


def test_other_work_is_not_the_same(ablation: Any, make: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a loss over all tokens but the last target of each micro-batch."""
    from backends.torch import loss

    job = make("torch", "full", "float32")
    whole = losses(ablation, job, ablation.ALL)
    to_device = loss.to_device

    def one_less(batch: Any, device: Any) -> Any:
        arguments = to_device(batch, device)
        return {**arguments, **{name: arguments[name][:-1] for name in ("positions_N", "targets_N", "weights_N")}}

    monkeypatch.setattr("backends.torch.train.to_device", one_less)
    found = losses(ablation, job, ablation.ALL)
    assert max(abs(a - b) for a, b in zip(found, whole, strict=True)) > 100 * SAME["float32"]


@pytest.mark.skipif(not installed("mlx"), reason="mlx is not installed here")
def test_the_blas_is_there_before_a_patch_imports_mlx(ablation: Any, make: Job) -> None:
    """A reference BLAS would take 25 times as long, and the missing part would get the blame."""
    path = make("mlx", "full", "float32").out.with_name("job.json")
    path.write_text(make("mlx", "full", "float32").model_dump_json())
    code = (
        f"import sys; sys.path.insert(0, {str(work.ROOT)!r})\n"
        "from pathlib import Path\nfrom benchmarks import ablation\n"
        "early = 'mlx.core' in sys.modules\n"
        "part = lambda job: sys.exit(7 if 'backends.mlx' in sys.modules and not early else 8)\n"
        f"ablation.PARTS = {{'mlx': {{'it': part}}}}\nablation.run_without(Path({str(path)!r}), 'it')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("torch", "--rows", "4"), "--rows 4 must be at least one update"),
        (("torch", "--rounds", "0"), "--rounds"),
        (("torch", "--data", "nowhere.jsonl"), "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    ablation: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(sys, "argv", ["ablation.py", str(out), *arguments, "--model", str(model)])
    with pytest.raises(GSM8KError, match=says):
        ablation.main()
    assert not out.exists()


def _counted(stack: ExitStack, patch: Any) -> list[int]:
    """Enters the patch with a replacement that counts its calls."""
    count, new = [0], patch.new

    if isinstance(new, type):

        class Counting(new):  # type: ignore[misc, valid-type]
            def __init__(self, *arguments: Any, **named: Any) -> None:
                count[0] += 1
                super().__init__(*arguments, **named)

        patch.new = Counting
    elif callable(new):

        def counting(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            return new(*arguments, **named)

        patch.new = counting
    stack.enter_context(patch)
    if not callable(new):
        raise AssertionError(f"{patch.attribute} is replaced by something that nobody calls")
    return count
