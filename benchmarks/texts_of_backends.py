"""Are the texts of two evaluations equal? Two records.jsonl of one model, greedy, by parity/texts.py's one sentence.

    python benchmarks/texts_of_backends.py --model embedded A/records.jsonl B/records.jsonl

The first is the reference; its gaps are scored in float32 by PyTorch on the CPU. Problems that both have count.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import backends
from gsm8k_core.models.find import resolve_model
from gsm8k_core.parity.texts import AnswerPair, compare
from gsm8k_core.problems.prompts import prompt_tokens
from gsm8k_core.scoring.evaluate import completion_of
from gsm8k_core.types import Problem, Sampling


def records(path: Path) -> dict[str, dict[str, Any]]:
    return {record["id"]: record for record in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def main() -> int:
    """Returns 1 where a text parts beyond eps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    source = resolve_model(options.model, print)
    ours, theirs = records(options.reference), records(options.other)
    both = [name for name in ours if name in theirs]
    problems = [Problem(name, ours[name]["question"], ours[name]["answer"], ours[name]["gold"]) for name in both]
    prompts = prompt_tokens(source.model.rendering, problems)
    answers = [
        AnswerPair(name, prompt, 0, completion_of(ours[name]), completion_of(theirs[name]))
        for name, prompt in zip(both, prompts, strict=True)
    ]
    backend = backends.open("torch", source.folder, "cpu", "float32")
    most = max(len(answer.reference.tokens) for answer in answers)
    found = compare(answers, backend, Sampling(most, 1), source.model.end_ids, "float32")
    print(json.dumps(found, indent=1))
    return int(found["beyond_eps"] > 0)


if __name__ == "__main__":
    sys.exit(main())
