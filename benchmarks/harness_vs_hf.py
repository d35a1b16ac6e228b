"""Our lm-eval adapter beside lm-eval's own hf backend: the same task, model and rows, float32, greedy, on the CPU.

    python benchmarks/harness_vs_hf.py --model embedded --data FOLDER --limit 100 --backends torch,mlx --out X.json

Compares every generation and every score, and the log-likelihoods of the gold answers. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import backends
from gsm8k_core.config.score import HarnessConfig
from gsm8k_core.files import write_json
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.data import load_data
from verbs.harness import evaluate, find_tasks, make_lm, rows_of


def main() -> int:
    """Returns 1 where something differs."""
    options = _options()
    source = resolve_model(options.model, print)
    config = HarnessConfig(
        model=options.model,
        tasks=options.task,
        limit=options.limit,
        data=options.data,
        apply_chat_template=options.apply_chat_template,
        gen_kwargs=options.gen_kwargs,
        num_fewshot=options.num_fewshot,
    )
    problems = load_data(str(options.data), "main", 0, print, splits=("test",)).test[: options.limit]
    pairs = [(f"Question: {problem.question}\nAnswer:", f" {problem.answer}") for problem in problems]
    # torch's float32 log_softmax over 49,152 tokens is 1e-5 a token off: against it, no error of ours could be seen.
    hf = HFLM(
        pretrained=str(source.folder),
        dtype="float32",
        softmax_dtype="float64",
        batch_size=options.batch_size,
        device="cpu",
    )
    reference = _measured(hf, config, pairs)
    print(f"hf       {reference['seconds']} s, {reference['scores']}")
    rows: dict[str, Any] = {}
    for name in options.backends.split(","):
        opened = backends.open(name, source.folder, "cpu", "float32")
        lm = make_lm(opened, source, options.batch_size)
        measured = _measured(lm, config, pairs)
        rows[name] = _compared(measured, reference) | {
            "seconds": measured["seconds"],
            "scores": measured["scores"],
        }
        print(f"{name:<8} {json.dumps(rows[name])}")
    if options.out:
        said = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        hf_said = {"seconds": reference["seconds"], "scores": reference["scores"]}
        write_json(options.out, {"options": said, "hf": hf_said, **rows})
    return int(any(row["other_prompts"] or row["other_generations"] or row["other_scores"] for row in rows.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--gen-kwargs", default="")
    parser.add_argument("--apply-chat-template", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--backends", default="torch,mlx")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measured(lm: Any, config: HarnessConfig, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    start = time.monotonic()
    found = evaluate(lm, find_tasks([config.tasks], config.data), config)
    seconds = {"generate": round(time.monotonic() - start, 1)}
    start = time.monotonic()
    likelihoods = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    seconds["loglikelihood"] = round(time.monotonic() - start, 1)
    rows = {(row["filter"], row["doc_id"]): row for row in rows_of(found)}
    scores = {name: value for name, value in found["results"][config.tasks].items() if name.startswith("exact_match,")}
    return {"rows": rows, "likelihoods": likelihoods, "seconds": seconds, "scores": scores}


def _compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    pairs = [(row, theirs["rows"][key]) for key, row in ours["rows"].items()]
    likelihoods = list(zip(ours["likelihoods"], theirs["likelihoods"], strict=True))
    return {
        "problems": len({key[1] for key in theirs["rows"]}),
        "other_prompts": sorted({a["doc_id"] for a, b in pairs if a["prompt_hash"] != b["prompt_hash"]}),
        "other_generations": sorted({a["doc_id"] for a, b in pairs if a["resps"] != b["resps"]}),
        "other_scores": sorted({a["doc_id"] for a, b in pairs if a["exact_match"] != b["exact_match"]}),
        "loglikelihood_error": max(abs(a[0] - b[0]) for a, b in likelihoods),
        "loglikelihood_largest": max(abs(b[0]) for _, b in likelihoods),
        "other_greedy": sum(a[1] != b[1] for a, b in likelihoods),
    }


if __name__ == "__main__":
    sys.exit(main())
