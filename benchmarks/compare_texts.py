"""Are the texts equal? parity/texts.py's one sentence, by float32 PyTorch on the CPU: compare_texts.py JOB.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import backends
from benchmarks.job import TextsJob
from gsm8k_core.files import write_json
from gsm8k_core.parity.texts import AnswerPair, compare
from gsm8k_core.types import Completion, Sampling


def main(path: Path) -> None:
    job = TextsJob.model_validate(json.loads(path.read_bytes()))
    backend = backends.open("torch", job.model, "cpu", "float32")
    sampling = Sampling(job.max_new_tokens, 1)

    def completion(tokens: list[int]) -> Completion:
        return Completion(tuple(tokens), "stop" if len(tokens) < job.max_new_tokens else "length")

    found = {}
    for name, texts in job.completions.items():
        answers = [
            AnswerPair(str(place), prompt, place, completion(theirs), completion(mine))
            for place, (prompt, theirs, mine) in enumerate(
                zip(job.prompts, job.completions[job.reference], texts, strict=True)
            )
        ]
        found[name] = compare(answers, backend, sampling, job.end_ids, job.dtype)
    write_json(job.out, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
