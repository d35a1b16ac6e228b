"""What samples say: rates, paired ratios, what does not count; the tables and files made from one record."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks import measure
from benchmarks.config import BenchmarkConfig
from benchmarks.job import TrainSample
from benchmarks.report import bars, write_report
from benchmarks.results import Spread, first_pass_rate, memory_ratio, objections, ratio, read, share, steady, train_rate
from benchmarks.tables import tables
from gsm8k_core.types import DataError, UsageError

ROOT = Path(__file__).parents[2]
SHAPE = {"layers": 1, "hidden": 4, "inner": 4, "heads": 1, "kv_heads": 1, "head_dim": 4, "vocabulary": 10}
UPDATES = [{"rows": 4, "tokens": 60, "targets": 30}, {"rows": 4, "tokens": 40, "targets": 20}]
TWO_PASSES = [[[4, 16]], [[4, 8]], [[4, 16]], [[4, 8]]]


def sample(seconds: list[float], **changes: Any) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "losses": [1.0] * len(seconds),
        "first_loss": 1.0,
        "shapes": TWO_PASSES,
        "load_seconds": 1.0,
        "aside_seconds": 0.5,
        "process_seconds": 20.0,
        "gemm_gflops": 1.0,
        "peak_rss": 2 << 30,
        "peak_framework": None,
    } | changes


def record(mode: str = "train") -> dict[str, Any]:
    """ours-torch is twice as fast as hf in the first round, four times in the second."""
    contenders = {name: {"device": "cpu", "reason": "", "updates": UPDATES} for name in ("ours-torch", "hf")}
    runs = [
        (1, "ours-torch", sample([9.0, 9.0, 1.0, 1.0], peak_rss=1 << 30)),
        (1, "hf", sample([9.0, 9.0, 2.0, 2.0])),
        (2, "ours-torch", sample([9.0, 9.0, 0.5, 0.5], peak_rss=1 << 30)),
        (2, "hf", sample([9.0, 9.0, 2.0, 2.0])),
    ]
    return {
        "schema": 1,
        "mode": mode,
        "started": "2026-01-01T00:00:00+0000",
        "commit": None,
        "versions": {"torch": "2"},
        "host": {"cpu": "A CPU", "cores": 2, "system": "Linux"},
        "config": BenchmarkConfig().model_dump(mode="json"),
        "model": {"name": "embedded", "shape": SHAPE},
        "data": "d",
        "contenders": contenders,
        "prompts": {"tokens": []},
        "texts": {},
        "failures": {},
        "samples": [{"round": number, "contender": name, "sample": one} for number, name, one in runs],
        "scores": {"ours-torch": {"nll_sum": 100.5, "num_targets": 100}, "hf": {"nll_sum": 100, "num_targets": 100}},
    }


def test_only_updates_whose_shapes_ran_before_in_that_order_are_steady() -> None:
    assert steady(TrainSample.model_validate(sample([1.0] * 4))) == [2, 3]
    mixed = sample([1.0] * 4, shapes=[[[4, 8], [4, 16]], [[4, 16], [4, 8]], [[4, 16]], [[4, 16], [4, 8]]])
    assert steady(TrainSample.model_validate(mixed)) == [3]


def test_rates_are_of_real_rows_and_tokens_over_the_steady_updates() -> None:
    run = read(record())
    one = run.samples["ours-torch"][1]
    assert isinstance(one, TrainSample)
    assert train_rate(run, "ours-torch", one) == 4.0
    assert train_rate(run, "ours-torch", one, "tokens") == 50.0
    assert first_pass_rate(run, "ours-torch", one) == pytest.approx(8 / 18)
    whole = read(record("end-to-end"))
    assert train_rate(whole, "ours-torch", one) == 16 / 20


def test_a_ratio_is_taken_round_by_round() -> None:
    run = read(record())
    found = ratio(run, "ours-torch", "hf")
    assert found is not None
    assert (found.median, found.lowest, found.highest, found.rounds) == (3.0, 2.0, 4.0, 2)
    assert memory_ratio(run, "ours-torch", "hf") == 0.5


def on_devices(mine: str, other: str, peaks: tuple[int | None, int | None]) -> float | None:
    text = json.dumps(record()).replace('"ours-torch"', '"ours-mlx"').replace('"hf"', f'"{other}"')
    values = json.loads(text)
    for name, device, peak in zip(("ours-mlx", other), mine.split(), peaks, strict=True):
        values["contenders"][name]["device"] = device
        for entry in values["samples"]:
            if entry["contender"] == name:
                entry["sample"]["peak_framework"] = peak
    return memory_ratio(read(values), "ours-mlx", other)


def test_memory_is_compared_where_it_is_counted_alike() -> None:
    assert on_devices("gpu gpu", "mlx-lm", (3, 4)) == 0.75  # what the process holds says nothing of a GPU's memory
    assert on_devices("gpu gpu", "mlx-lm", (3, None)) is None
    assert on_devices("gpu mps", "ours-torch", (3, 4)) is None
    assert on_devices("cpu cpu", "ours-torch", (3, 4)) == 0.5
    values = record()
    for each in values["contenders"].values():
        each["device"] = "mps"
    assert tables(read(values))[1].rows[0][1] == "-"


def test_a_peer_that_wrote_nothing_gives_no_ratio() -> None:
    values = generation()
    values["samples"][1]["sample"]["completions"] = [[], []]
    assert ratio(read(values), "ours-torch", "hf") is None
    assert tables(read(values))[1].rows[0][2] == "no rate"


def test_a_round_that_only_one_ran_gives_no_ratio() -> None:
    values = record()
    values["samples"] = values["samples"][:3]
    found = ratio(read(values), "ours-torch", "hf")
    assert found is not None
    assert found.rounds == 1
    values["samples"] = [values["samples"][0], values["samples"][1] | {"round": 7}]
    assert ratio(read(values), "ours-torch", "hf") is None


def changed(**changes: Any) -> dict[str, Any]:
    """The record with changes to every sample of ours; what it reports goes with its first loss."""
    values = copy.deepcopy(record())
    if "first_loss" in changes:
        changes["losses"] = [changes["first_loss"]] * 4
    for entry in values["samples"]:
        if entry["contender"] == "ours-torch":
            entry["sample"] |= changes
    return values


def test_a_speed_up_counts_with_equal_first_losses_and_weights_that_are_no_worse() -> None:
    assert objections(read(record()), "ours-torch", "hf") == []
    assert objections(read(changed(first_loss=1.0009)), "ours-torch", "hf") == []
    better = record()
    better["scores"]["ours-torch"]["nll_sum"] = 50
    assert objections(read(better), "ours-torch", "hf") == []


def test_what_does_not_count_says_why() -> None:
    def why(values: dict[str, Any]) -> str:
        return "; ".join(objections(read(values), "ours-torch", "hf"))

    assert why(changed(first_loss=1.0011)) == "the first losses are 1.0011 and 1.0000"
    half = changed(first_loss=1.0049)
    half["config"]["dtype"] = "bfloat16"  # which rounds a loss in the third digit
    assert why(half) == ""
    half["samples"][0]["sample"] |= {"first_loss": 1.0051, "losses": [1.0051] * 4}
    assert why(half) == "the first losses are 1.0051 and 1.0000"
    worse, unscored = record(), record()
    worse["scores"]["ours-torch"]["nll_sum"] = 101.1
    del unscored["scores"]["hf"]
    assert why(worse) == "its weights are worse: NLL 1.0110 against 1.0000"
    assert why(unscored) == "the weights were not scored"
    # A peer whose own loss is another: it was given other targets.
    masked = record()
    masked["samples"][1]["sample"]["losses"][0] = 1.0011
    assert why(masked) == "hf reports 1.0011 for its first loss, which is 1.0000"
    assert "% of the measured matrix-product rate: the clock or the formula is wrong" in why(changed(gemm_gflops=1e-7))


def test_the_faster_of_the_two_matrix_product_rates_counts() -> None:
    """Measured in a slow moment, 124 % of the rate once refused a true ratio."""
    assert objections(read(changed(gemm_gflops=1e-7, gemm_after=1.0)), "ours-torch", "hf") == []
    assert objections(read(changed(gemm_gflops=1.0, gemm_after=1e-7)), "ours-torch", "hf") == []
    (why,) = objections(read(changed(gemm_gflops=1e-7, gemm_after=2e-7)), "ours-torch", "hf")
    assert "% of the measured matrix-product rate: the clock or the formula is wrong" in why


@pytest.mark.parametrize(("after", "busy"), [(0.79, True), (0.81, False), (1.26, True), (1.24, False), (None, False)])
def test_a_machine_that_was_busy_is_said_to_have_been(after: float | None, busy: bool) -> None:
    for values, name in ((record(), "hf"), (generation(), "hf")):
        values["samples"][1]["sample"]["gemm_after"] = after
        notes = [note for note in tables(read(values))[0].notes if "busy" in note]
        assert len(notes) == busy
        assert all(note.startswith(f"The machine was busy while {name} ran (round 1)") for note in notes)


def test_older_results_still_open() -> None:
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert len(paths) > 5
    for path in paths:
        assert tables(read(json.loads(path.read_text(encoding="utf-8"))))


class Slow:
    """A device that notes in which order it was asked, and is slow at the first product."""

    is_cpu = True

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def synchronise(self) -> None: ...

    def product(self, size: int) -> Any:
        self.asked.append("product")
        return lambda: None

    def peak_bytes(self) -> int:
        self.asked.append("peak")
        return 7

    def notes(self) -> dict[str, str]:
        return {}


def test_the_rate_is_measured_before_and_after_and_memory_before_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    rates = iter((80.0, 100.0))
    monkeypatch.setattr(measure, "gflops", lambda *unused: next(rates))
    tape = measure.Tape(SimpleNamespace(updates=[[]], passes=1), Slow(asked), 0.0, [psutil.Process()])  # type: ignore[arg-type]
    tape.start()
    tape.losses.append(1.0)
    tape.update_done()
    found = tape.sample(1.0)
    assert asked == ["product", "peak", "product"]
    assert (found.gemm_gflops, found.gemm_after, found.gemm_rate, found.was_busy) == (80.0, 100.0, 100.0, False)
    assert (found.peak_framework, found.aside_seconds) == (7, pytest.approx(tape.aside_seconds))


def test_the_share_of_the_matrix_product_rate() -> None:
    run = read(changed(gemm_gflops=1e-3))
    one = run.samples["ours-torch"][1]
    # 112 block parameters and 40 of the head; attention 16 x width; forward and twice backward.
    body = 64 * (2 * 112 + 16 * 16) + 32 * (2 * 112 + 16 * 8)
    assert share(run, "ours-torch", one) == pytest.approx(3 * (body + 50 * 80) / 2 / 1e6)
    assert share(read(record("end-to-end")), "ours-torch", one) is None


def test_a_spread_is_median_and_tenths() -> None:
    assert Spread.of([float(value) for value in range(11)]) == Spread(5.0, 1.0, 9.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_the_tables_name_a_ratio_or_the_reason() -> None:
    contenders, pair = tables(read(record()))
    assert contenders.rows[0][:5] == ("ours-torch", "cpu", "6 (4 - 8)", "75", "0.444")
    assert pair.rows == (("ours-torch / hf", "0.50", "3.00 (2.00 - 4.00, 2 rounds)", "-"),)
    refused = tables(read(changed(first_loss=2.0)))[1]
    assert refused.rows[0][2] == "does not count: the first losses are 2.0000 and 1.0000"


def generation() -> dict[str, Any]:
    values = record() | {"mode": "generate", "prompts": {"tokens": [5, 7], "shared": 3}, "reference": "ours-torch"}
    values["samples"] = [
        {
            "round": 1,
            "contender": name,
            "sample": {
                "seconds": seconds,
                "warm_up_seconds": 1.0,
                "batch_size": 2,
                "completions": [[1, 2, 3], [4]],
                "stopped": [True, True],
                "load_seconds": 1.0,
                "gemm_gflops": 1.0,
                "peak_rss": 1 << 30,
                "peak_framework": 1 << 29,
            },
        }
        for name, seconds in (("ours-torch", 2.0), ("hf", 4.0))
    ]
    same = {"equal": 2, "within_eps": 0, "beyond_eps": 0}
    return values | {"texts": {"ours-torch": same, "hf": same}}


def test_what_our_prompts_share_is_read_once() -> None:
    run = read(generation())
    mine, peer = (share(run, name, run.samples[name][1]) for name in ("ours-torch", "hf"))
    assert mine is not None
    assert peer is not None
    # 112 block parameters; three tokens of one prompt, at a mean width of 1.
    assert (2 * peer - mine) * 2.0 == pytest.approx(3 * (2 * 112 + 16) / 1e9)


def test_generation_counts_new_tokens_and_refuses_other_texts() -> None:
    values = generation()
    contenders, pair = tables(read(values))
    assert contenders.rows[1][:4] == ("hf", "cpu", "2", "1 (1 - 1)")
    assert contenders.rows[1][-1] == "2 equal, 0 within eps, 0 beyond"
    assert pair.rows[0][2] == "2.00 (1 round)"
    values["texts"]["hf"] = {"equal": 1, "within_eps": 0, "beyond_eps": 1}
    assert tables(read(values))[1].rows[0][2].startswith("does not count: hf's texts are others (1 equal")


def test_what_a_peer_trains_otherwise_is_said_of_training_alone() -> None:
    said = []
    for values in (record(), generation()):
        text = json.dumps(values).replace('"ours-torch"', '"ours-mlx"').replace('"hf"', '"mlx-lm"')
        said.append(tables(read(json.loads(text)))[1].rows[0][-1])
    assert "trains blocks only" in said[0]
    assert said[1] == "-"


def test_the_report_is_made_of_the_files_alone_and_twice_the_same(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "train-1.json").write_text(json.dumps(record()))
    (results / "generate-1.json").write_text(json.dumps(generation()))
    written = write_report(results)
    assert [path.name for path in written] == ["README.md", "generate-1.png", "train-1.png"]
    assert [path.parent for path in written] == [tmp_path, results, results]
    text = written[0].read_text()
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["results/generate-1.png", "results/train-1.png"]
    assert "| ours-torch / hf | 0.50 | 3.00 (2.00 - 4.00, 2 rounds) | - |" in text
    short = "| A CPU, 2 cores; cpu | ours-torch / hf | 0.50 | 3.00 (2.00 - 4.00, 2 rounds) |\n"
    assert short in text.split("## generate-1")[0]
    assert "Nothing here was run." in text
    assert text.count("| train: embedded, float32, full, 8 rows of d in updates of 8, B = 4: ours-torch | ") == 1
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_report(results)] == before


def test_memory_is_drawn_where_no_update_is_steady() -> None:
    values = record()
    for entry in values["samples"]:
        entry["sample"]["shapes"] = [[[4, width]] for width in (8, 16, 24, 32)]
    drawn = bars(read(values))
    assert drawn.unit == "GiB of peak memory"
    assert drawn.values == {"ours-torch": [1.0, 1.0], "hf": [2.0, 2.0]}
    for each in values["contenders"].values():
        each["device"] = "cuda"
    for entry in values["samples"]:
        entry["sample"]["peak_framework"] = 3 << 30 if entry["contender"] == "hf" else None
    assert bars(read(values)).values == {"hf": [3.0, 3.0]}


def test_a_page_that_somebody_wrote_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "train-1.json").write_text(json.dumps(record()))
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(DataError, match="was written by somebody else and stays"):
        write_report(tmp_path / "results")
    assert (tmp_path / "README.md").read_text() == "# My project"
    assert list(tmp_path.rglob("*.png")) == []


NO_HOST = {name: value for name, value in record().items() if name != "host"}


@pytest.mark.parametrize(
    "content", [json.dumps(NO_HOST), '{"schema": 2}', "{}", "no JSON", '{"schema": 1, "mode": "train", "samples": 3}']
)
def test_a_file_that_is_no_result_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(DataError, match=r"odd\.json"):
        write_report(tmp_path)


def test_without_results_the_report_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"python cli\.py benchmark train makes one"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"update_size": 6}, "--update-size 6 must be a multiple of the rows in a micro-batch, 4"),
        ({"update_size": 4, "contenders": "ours-mlx,mlx-lm-double"}, "a multiple of the rows in a micro-batch, 8"),
        ({"rows": 4}, "--rows 4 must be at least one update"),
        ({"contenders": "ours-mlx,trll"}, "--contenders takes auto, all, or names .* not trll"),
        ({"contenders": ","}, "--contenders takes auto, all, or names"),
        ({"method": "lora", "trainable": "blocks"}, "--trainable blocks is for --method full"),
        ({"mode": "generate", "method": "lora"}, "generate answers with the model as it is; --method lora"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        BenchmarkConfig(**settings)


def test_generation_has_no_micro_batches_to_be_whole() -> None:
    assert BenchmarkConfig(mode="generate", batch_size=16).batch_size == 16


def test_our_contenders_get_the_peers_step() -> None:
    assert BenchmarkConfig(max_length=1024).train_config().max_length == 1024
    config = BenchmarkConfig(update_size=8, batch_size=2, method="lora", lora_rank=4).train_config()
    assert (config.update_size, config.batch_size, config.schedule, config.warmup_ratio) == (8, 2, "constant", 0.0)
    assert (config.learning_rate, config.lora_rank, config.weight_decay) == (1e-5, 4, 0.0)
