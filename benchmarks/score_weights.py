"""The one scorer for everyone's weights: float32, through PyTorch on the CPU. python score_weights.py JOB.json"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from safetensors.numpy import save_file

import backends
from benchmarks.job import Score, ScoreJob
from gsm8k_core.files import write_bytes
from gsm8k_core.models.adapter import PEFT_PREFIX, A, B
from gsm8k_core.models.folder import weight_files, write_model_folder
from gsm8k_core.models.tensors import read_tensors
from gsm8k_core.problems.batching import pad

BATCH = 4


def main(path: Path) -> None:
    job = ScoreJob.model_validate_json(path.read_bytes())
    with tempfile.TemporaryDirectory(dir=job.out.parent) as scratch:
        folder = job.model if job.trained is None else merged(job, job.trained, Path(scratch) / "merged")
        backend = backends.open("torch", folder, "cpu", "float32")
        examples = sorted((row.example for row in job.rows), key=lambda example: len(example.tokens))
        total, count = 0.0, 0
        for start in range(0, len(examples), BATCH):
            batch = pad(examples[start : start + BATCH])
            total -= math.fsum(batch.at_targets(backend.score(batch)).astype(np.float64))
            count += batch.num_targets
    write_bytes(job.out, Score(nll_sum=total, num_targets=count).model_dump_json().encode())


def merged(job: ScoreJob, trained: Path, directory: Path) -> Path:
    """The whole model with the trained tensors in it: in place of its own, or W + scale x B A for an adapter."""
    weights = {name: value for file in weight_files(job.model) for name, value in read_tensors(file).items()}
    values = read_tensors(trained)
    if job.method == "full":
        strange = set(values) - set(weights) - {"lm_head.weight"}
        weights |= {name: value for name, value in values.items() if name in weights}
    else:
        strange = {name for name in values if not name.endswith((A, B))}
        for name in (name for name in values if name.endswith(A)):
            stem = name.removesuffix(A)
            base = f"{stem.removeprefix(PEFT_PREFIX)}.weight"
            weights[base] = weights[base] + job.lora_scale * (values[stem + B] @ values[name])
    if strange:
        raise SystemExit(f"{trained} holds {min(strange)}, which the model does not have")
    write_model_folder(
        job.model, directory, lambda folder: save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    )
    return directory


if __name__ == "__main__":
    main(Path(sys.argv[1]))
