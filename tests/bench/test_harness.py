"""lm-eval over our backends: what its own hf backend writes and scores on the same tiny model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

import backends
import cli
from gsm8k_core.config.score import HarnessConfig
from gsm8k_core.models.find import resolve_model
from gsm8k_core.parity import tiny
from gsm8k_core.scoring.harness import Continuation, Engine, are_greedy, clipped, complete, sampling_of
from gsm8k_core.types import Completion, DataError, Sampling, UsageError

pytestmark = pytest.mark.usefixtures("bench")

PROMPTS = [
    "how many apples has Tom",
    "he buys 2 3 4 and more",
    "each day gives + 5",
    "Tom ? Tom ? Tom",
    "10 - 9 = << >>",
]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["Tom", "he buys 2", "apples", "#### 10"]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokens are bytes: what it writes is often no UTF-8, and no stop string is one token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    folder = tiny.make(tmp_path_factory.mktemp("harness") / "model", vocab_size=320)
    file = folder / "tokenizer.json"
    settings = json.loads(file.read_text())
    vocabulary = {token: index for index, token in enumerate([*tiny.SPECIAL, *letters])}
    settings["model"] = {"type": "BPE", "vocab": vocabulary, "merges": []}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    settings |= {"pre_tokenizer": bytes_, "decoder": bytes_}
    file.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("harness-data"), np.random.default_rng(0)
    words = [word for word in tiny.WORDS if word != "####"]
    for split in ("train", "test"):
        texts = [" ".join(rng.choice(words, 6)) for _ in range(12)]
        rows = [json.dumps({"question": text, "answer": f"{text[-12:]}\n#### {row}"}) for row, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def hf(bench: None, model: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(model), dtype="float32", batch_size=2, device="cpu")


def opened(name: str, model: Path, batch_size: int = 2, seed: int = 0) -> Any:
    from verbs.harness import make_lm

    source = resolve_model(str(model), lambda line: None)
    return make_lm(backends.open(name, model, "cpu", "float32"), source, batch_size, seed)


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def texts(lm: Any, prompts: Sequence[str] = PROMPTS, **settings: Any) -> list[str]:
    return list(lm.generate_until(requests("generate_until", [(prompt, dict(settings)) for prompt in prompts])))


def likelihoods(lm: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    return list(lm.loglikelihood(requests("loglikelihood", pairs)))


# --- beside lm-eval's hf backend -----------------------------------------------------------------------------------


def test_gsm8k_over_local_rows_gives_the_same_answers_and_scores(
    backend_name: str, hf: Any, model: Path, data: Path
) -> None:
    from verbs.harness import evaluate, find_tasks, rows_of

    config = HarnessConfig(model=str(model), data=data, limit=5, num_fewshot=2, gen_kwargs="max_gen_toks=24")
    ours, theirs = (evaluate(lm, find_tasks(["gsm8k"], data), config) for lm in (opened(backend_name, model), hf))
    assert ours["results"] == theirs["results"]
    keys = ("doc_id", "filter", "prompt_hash", "resps", "filtered_resps", "exact_match", "target")
    rows = [[{key: row[key] for key in keys} for row in rows_of(found)] for found in (ours, theirs)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 10
    assert len({row["resps"][0][0] for row in rows[0]}) > 3


def test_texts_are_cut_at_stop_strings_as_hf_cuts_them(backend_name: str, hf: Any, model: Path) -> None:
    free = texts(hf, max_gen_toks=30)
    until = [free[1][12:14], free[2][20], free[3][5:9]]
    lm = opened(backend_name, model)
    assert texts(lm, max_gen_toks=30) == free
    cut = texts(lm, max_gen_toks=30, until=list(until))
    assert cut == texts(hf, max_gen_toks=30, until=list(until))
    assert cut != free
    assert texts(opened(backend_name, model, batch_size=1), max_gen_toks=30, until=list(until)) == cut


def test_log_likelihoods_are_those_of_hf(backend_name: str, hf: Any, model: Path) -> None:
    greedy = zip(PROMPTS, texts(hf, max_gen_toks=1), strict=True)
    pairs = [(prompt, letter) for prompt, letter in greedy if letter.strip().isascii() and letter.strip()]
    pairs += [(prompt, f" {word}") for prompt in PROMPTS for word in ("Tom", "apples has", "é more and more")]
    pairs += [("", "Tom buys 2"), ("he buys ", "2 apples")]
    lm = opened(backend_name, model)
    ours, theirs = likelihoods(lm, pairs), likelihoods(hf, pairs)
    error = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    assert error < 1e-4
    assert [a[1] for a in ours] == [b[1] for b in theirs]
    assert {a[1] for a in ours} == {True, False}
    shifted = likelihoods(lm, [(f"{context},", text) for context, text in pairs])
    assert max(abs(a[0] - b[0]) for a, b in zip(shifted, theirs, strict=True)) > 1e-2


def test_rolling_log_likelihoods_are_those_of_hf_beyond_the_context(backend_name: str, hf: Any, model: Path) -> None:
    long = " ".join(np.random.default_rng(0).choice(tiny.WORDS, 300))
    rows = requests("loglikelihood_rolling", [(long,), (PROMPTS[0],), ("Tom",)])
    lm = opened(backend_name, model)
    np.testing.assert_allclose(lm.loglikelihood_rolling(rows), hf.loglikelihood_rolling(rows), atol=1e-2, rtol=1e-6)


def test_a_prompt_that_is_too_long_loses_its_start_as_with_hf(hf: Any, model: Path) -> None:
    long = " ".join(np.random.default_rng(1).choice(tiny.WORDS, 200))
    lm = opened("torch", model)
    assert texts(lm, [long, "Tom"], max_gen_toks=8) == texts(hf, [long, "Tom"], max_gen_toks=8)


def test_a_control_token_in_a_problem_is_text(bench: None, model: Path) -> None:
    lm = opened("torch", model)
    usual, odd = (
        lm.tok_encode(lm.apply_chat_template([{"role": "user", "content": text}]))
        for text in ("Tom buys 4", "Tom <end> <start> 4")
    )
    assert [usual.count(token) for token in (1, 2)] == [odd.count(token) for token in (1, 2)] == [1, 2]
    assert not {1, 2} & {*lm.tok_encode("Tom <end> <start> 4")}


@pytest.mark.parametrize("start", [True, False])
def test_the_chat_template_is_applied_as_hf_applies_it(start: bool, hf: Any, model: Path) -> None:
    lm = opened("torch", model)
    turns = [{"role": role, "content": f"{role} buys 2"} for role in ("system", "user", "assistant")][: 3 - start]
    assert lm.apply_chat_template(turns, start) == hf.apply_chat_template(turns, start)
    assert lm.chat_template(True) == hf.chat_template(True) == tiny.TEMPLATE
    assert lm.tokenizer_name == str(model).replace("/", "__")
    assert lm.tok_encode("<end> Tom") == hf.tok_encode("<end> Tom")


# --- sampling ------------------------------------------------------------------------------------------------------


def test_what_is_drawn_depends_on_seed_and_request_alone(backend_name: str, model: Path) -> None:
    asked = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "top_p": 0.9}
    drawn = texts(opened(backend_name, model, batch_size=5), **asked)
    assert texts(opened(backend_name, model, batch_size=1), PROMPTS[::-1], **asked) == drawn[::-1]
    assert texts(opened(backend_name, model, seed=1), **asked) != drawn
    repeated = texts(opened(backend_name, model), [PROMPTS[0]] * 3, **asked)
    assert repeated[0] == drawn[0]
    assert len(set(repeated)) == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_beams": 4}, "num_beams=4, which no backend offers"),
        ({"repetition_penalty": 1.1, "foo": 1}, "repetition_penalty=1.1, foo=1"),
        ({"do_sample": True}, "samples without a temperature"),
        ({"max_gen_toks": "abc"}, "max_gen_toks=abc must be a whole number above 0"),
        ({"max_gen_toks": 1.5}, "max_gen_toks=1.5 must be a whole number above 0"),
        ({"max_gen_toks": 0}, "max_gen_toks=0 must be a whole number above 0"),
        ({"temperature": float("nan")}, "temperature=nan must be a number"),
        ({"do_sample": "maybe"}, "do_sample=maybe must be true or false"),
        ({"until": ["a", 5]}, "must be a text, or a list of texts"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 7}, "top_p is above 0 and 1 at most"),
        ({"do_sample": True, "temperature": 1.0, "top_k": "x"}, "top_k=x must be a whole number"),
    ],
)
def test_what_no_backend_offers_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        sampling_of({"max_gen_toks": 8, **settings}, 4, 0)


def test_settings_that_change_nothing_are_accepted() -> None:
    asked = {"max_gen_toks": 8, "do_sample": False, "temperature": 0.7, "top_k": 5, "num_beams": 1, "min_p": None}
    assert sampling_of(asked, 4, 3) == Sampling(8, 4, seed=3)
    asked |= {"do_sample": True}
    assert sampling_of(asked, 4, 3) == Sampling(8, 4, temperature=0.7, top_k=5, seed=3)


# --- the parts, with a model of letters ------------------------------------------------------------------------------


def fake(answers: dict[tuple[int, ...], str], batch_size: int = 2) -> Engine:
    """A model whose tokens are letters; it writes what it is told, then its end token, 0."""

    def generate(prompts: Any, sampling: Sampling, on_token: Any = None, keys: Any = None) -> Iterator[Any]:
        written, done = [answers[tuple(prompt)] for prompt in prompts], set[int]()
        for at in range(sampling.max_new_tokens + 1):
            for row, text in enumerate(written):
                reason = "stop" if at == len(text) else sampling.ended([*map(ord, text[:at])]) if at else None
                if reason and row not in done:
                    done.add(row)
                    yield row, Completion(tuple(map(ord, text[:at])), reason)

    def score(batch: Any) -> Any:
        raise AssertionError("not asked for")

    model: Any = SimpleNamespace(generate=generate, score=score)
    return Engine(model, lambda tokens: "".join(map(chr, tokens)), frozenset({0}), 128, 512, batch_size)


def test_an_answer_ends_with_its_stop_string_its_end_token_or_its_length() -> None:
    engine = fake({(1,): "ab. and so on", (2,): "abcd", (3,): "abcdefg.hij"}, batch_size=3)
    rows = complete(engine, [(1,), (2,), (3,)], [".", ""], Sampling(7, 3), [0, 1, 2], lambda count: None)
    assert ["".join(map(chr, row)) for row in rows] == ["ab.", "abcd", "abcdefg"]


def test_only_a_doubtful_continuation_is_really_continued() -> None:
    engine = fake({(9,): "abc"})
    pairs = [Continuation((9,), tuple(map(ord, text))) for text in ("abc", "ab", "b", "abc\0", "abd")]
    doubtful = np.asarray([-1.0], dtype=np.float32)
    assert are_greedy(engine, pairs, [doubtful] * 5) == [True, True, False, True, False]
    sure = [np.asarray([value], dtype=np.float32) for value in (-0.1, -9.0)]
    assert are_greedy(fake({}), pairs[:2], sure) == [True, False]


def test_a_row_is_cut_at_its_start_to_what_the_model_reads() -> None:
    assert clipped(Continuation((1, 2, 3, 4), (5, 6)), 4) == Continuation((2, 3, 4), (5, 6))
    for context, tokens in ((), (5,)), ((1,), ()):
        with pytest.raises(DataError, match="makes no token"):
            clipped(Continuation(context, tokens), 4)
    with pytest.raises(DataError, match="too long: the model reads 4"):
        clipped(Continuation((1,), (2, 3, 4, 5, 6)), 4)


# --- the verb ------------------------------------------------------------------------------------------------------


def test_the_verb_prints_lm_evals_results_and_writes_each_answer(
    backend_name: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    flags = f"--model {model} --data {data} --limit 3 --num-fewshot 1 --gen-kwargs max_gen_toks=8 --records {records}"
    flags += f" --backend {backend_name} --device cpu --dtype float32 --apply-chat-template --json"
    assert cli.main(["harness", *flags.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n-samples"] == {"gsm8k": {"original": 12, "effective": 3}}
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= set(found["results"]["gsm8k"])
    assert found["choices"]["backend"]["name"] == backend_name
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    assert [(row["task"], row["doc_id"]) for row in rows] == [("gsm8k", each) for each in (0, 1, 2)] * 2
    assert all("<start>" not in row["resps"][0][0] for row in rows)


def test_any_task_of_a_yaml_file_is_scored_as_with_hf(backend_name: str, hf: Any, model: Path, tmp_path: Path) -> None:
    from verbs.harness import evaluate, find_tasks

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"question": prompt}) + "\n" for prompt in PROMPTS))
    task = tmp_path / "task.yaml"
    task.write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    config = HarnessConfig(model=str(model), tasks=str(task))
    found = [evaluate(lm, find_tasks([str(task)], None), config) for lm in (opened(backend_name, model), hf)]
    assert found[0]["results"] == found[1]["results"]
    assert found[0]["n-samples"]["tiny_choice"]["effective"] == len(PROMPTS)


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ("--tasks gsm8k", 2, "harness needs a model"),
        ("--model embedded --tasks mmlu --data DATA", 2, "--data is for lm-eval's tasks gsm8k, gsm8k_cot"),
        ("--model embedded --num-fewshot -1", 2, "--num-fewshot"),
        ("--model embedded --data DATA/none", 4, "none"),
        ("--model MODEL --data DATA --gen-kwargs max_gen_toks=600", 2, "leaves no room for a prompt"),
        ("--model MODEL --data DATA --gen-kwargs max_gen_toks=abc", 2, "max_gen_toks=abc must be a whole"),
        ("--model MODEL --data DATA --num-fewshot 1000", 2, "--num-fewshot 1000 is more than gsm8k has to show"),
        ("--model embedded --tasks ,", 2, "--tasks names no task"),
        ("--model MODEL --tasks BAD.yaml", 4, "lm-eval cannot run BAD.yaml (ValueError: Unknown config shape"),
    ],
)
def test_what_cannot_work_is_one_line(
    flags: str,
    code: int,
    says: str,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("BAD.yaml").write_text("foo: 1")
    words = flags.replace("DATA", str(data)).replace("MODEL", str(model)).split()
    assert cli.main(["harness", *words]) == code
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_without_lm_eval_the_verb_says_how_to_get_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else real(name, *rest)
    )
    assert cli.main(["harness", "--model", str(model)]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: harness needs lm-eval, which is not installed; pip install -c constraints.txt -e '.[bench]'"
    ]
