"""The contenders in turn, round by round, each in a process of its own; whole rounds go into one JSON file."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.config import BenchmarkConfig
from benchmarks.contenders import END_TO_END, GENERATE, TRAIN, choose, contender_of, left_out, pairs
from benchmarks.record import new_path, new_record
from benchmarks.results import read
from benchmarks.scaling import spread_out
from benchmarks.tables import tables
from benchmarks.work import ContenderFailed, Lab, Work, first_adapter, hardware, prepare
from gsm8k_core.auto import choose_pair
from gsm8k_core.files import write_json
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.data import load_data
from gsm8k_core.tracking.terminal import clock
from gsm8k_core.types import EXIT_OK, Choice, PreflightError, counted
from verbs import Context

BASE = "base"  # the scored weights before training


class Rounds:
    """One benchmark: what is measured, and the record that grows round by round."""

    def __init__(self, config: BenchmarkConfig, context: Context) -> None:
        self.config, self.terminal = config, context.terminal
        here = hardware()
        self.devices = choose(config.mode, config.contenders, here, config.device, config.trainable, config.method)
        if config.worlds:
            self.devices = spread_out(self.devices, config.worlds)
        pair = choose_pair(config.model, config.data, "main", lambda asked: None)
        source = resolve_model(pair.model, self.terminal.say)
        data = load_data(pair.data, "main", config.seed, self.terminal.say)
        self.terminal.say(f"model    {source.name}; data {data.name}: {pair.data_choice.reason}")
        for name, device in self.devices.items():
            self.terminal.say(f"{name:<11} {device.name} ({device.reason}): {contender_of(name).what}")
        for name, why in left_out(config.mode, config.contenders, here, config.trainable, config.method).items():
            self.terminal.say(f"{name:<11} left out: {why}")
        self.work = prepare(config, source, data)
        for caution in _cautions(config, self.work, self.devices):
            self.terminal.say(f"note     {caution}")
        self.record = new_record(config, self.work, self.devices, data.name)
        self.path = new_path(config.results, config.mode)
        self.failed: set[str] = set()
        self.judged = 0.0  # seconds of scoring and of comparing texts: the first round's alone

    def run(self) -> int:
        begun, longest, done = time.monotonic(), 0.0, 0
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            scratch = Path(folder)
            lab = Lab(self.config, self.work, scratch, first_adapter(self.config, self.work.source.folder, scratch))
            for number in range(1, self.config.rounds + 1):
                spent, judged = time.monotonic() - begun, self.judged
                if done and spent + longest > self.config.budget_seconds:
                    self.terminal.say(f"ended    after {counted(done, 'round')}: --max-time {self.config.max_time}")
                    break
                try:
                    self._round(number, lab)
                except KeyboardInterrupt:
                    kept = f"{counted(done, 'round')} in {self.path}" if done else "nothing: no round was whole"
                    self.terminal.say(f"kept     {kept}")
                    raise
                took = time.monotonic() - begun - spent - (self.judged - judged)
                longest, done = max(longest, took), number
                self._save()  # only whole rounds: Ctrl-C keeps those
                if len(self.failed) == len(self.devices):
                    self.terminal.say(f"ended    in round {number}: no contender is left")
                    break
        self._tell()
        return EXIT_OK

    def _round(self, number: int, lab: Lab) -> None:
        samples: list[dict[str, Any]] = []
        for name, device in self.devices.items():
            if name in self.failed:
                continue
            start = time.monotonic()
            trained = lab.scratch / f"{name}.safetensors" if self._saves(number) else None
            try:
                sample = lab.sample(name, device, self._batch_size(name), trained)
            except ContenderFailed as error:
                self.failed.add(name)
                self._note(name, f"it is left out: {error}")
                continue
            samples.append({"round": number, "contender": name, "sample": sample})
            self.terminal.say(f"round {number}  {name:<11} {clock(time.monotonic() - start)}")
            if self._scores(number) and trained is not None:
                self._score(name, trained, lab)
            if trained is not None:
                trained.unlink(missing_ok=True)  # half a gigabyte
        if not samples and not self.record["samples"]:
            raise PreflightError("no contender finished a round: " + "; ".join(self.record["failures"].values()))
        self.record["samples"] += samples
        if self.config.mode == GENERATE and number == 1:
            self._compare(samples, lab)

    def _saves(self, number: int) -> bool:
        return self._scores(number) or self.config.mode == END_TO_END

    def _scores(self, number: int) -> bool:
        return self.config.mode != GENERATE and number == 1 and bool(self.work.held_out) and not self.config.worlds

    def _batch_size(self, name: str) -> int | None:
        """What a contender that chooses its own batch size took in the first round."""
        mine = [entry["sample"] for entry in self.record["samples"] if entry["contender"] == name]
        return int(mine[0]["batch_size"]) if mine and contender_of(name).best_batch else None

    def _score(self, name: str, trained: Path, lab: Lab) -> None:
        scores, start = self.record["scores"], time.monotonic()
        try:
            if BASE not in scores:
                scores[BASE] = lab.score(None).model_dump()
            scores[name] = lab.score(trained).model_dump()
        except ContenderFailed as error:  # the time it took is known all the same
            self._note(name, f"its weights were not scored: {error}")
        self.judged += time.monotonic() - start

    def _note(self, name: str, why: str) -> None:
        self.record["failures"][name] = why
        self.terminal.say(f"{name} failed: {why}")

    def _compare(self, samples: Sequence[Mapping[str, Any]], lab: Lab) -> None:
        answers = {entry["contender"]: entry["sample"]["completions"] for entry in samples}
        reference = "ours-torch" if "ours-torch" in answers else next(iter(answers))
        self.record["reference"], start = reference, time.monotonic()
        try:
            self.record["texts"] = lab.texts(reference, answers)
        except ContenderFailed as error:
            self._note(reference, f"no texts were compared: {error}")
        self.judged += time.monotonic() - start

    def _save(self) -> None:
        write_json(self.path, self.record, indent=None)  # a token on each line would make a file ten times as long

    def _results(self) -> str:
        default = type(self.config).model_fields["results"].default
        return "" if self.config.results == default else f" --results {self.config.results}"

    def _tell(self) -> None:
        for table in tables(read(self.record)):
            self.terminal.say(f"\n{table.title}")
            self.terminal.table(*table.for_terminal())
            for note in table.notes:
                self.terminal.say(note)
        self.terminal.say(f"\nwritten  {self.path}\nnext     python cli.py benchmark report{self._results()}")
        self.terminal.result({"written": str(self.path), "record": self.record})


def _cautions(config: BenchmarkConfig, work: Work, chosen: Mapping[str, Choice]) -> list[str]:
    """What the results will lack, said before the hours are spent."""
    names, devices = list(chosen), {device.name for device in chosen.values()}
    found = []
    if config.worlds and max(config.worlds) > (os.cpu_count() or 1) and "cpu" in devices:
        found.append(f"{max(config.worlds)} processes share {os.cpu_count()} cores: their efficiency means nothing")
    if len(names) > 1 and not pairs(names) and not config.worlds:
        found.append(f"{' and '.join(names)} compute with different frameworks: there will be no ratio")
    if config.mode == GENERATE:
        return found
    used = sum(map(len, work.ours))
    if used != config.rows:
        found.append(f"{used} rows are used, {config.rows} were asked for: whole updates of {config.update_size}")
    if not work.held_out and pairs(names):
        found.append("no test rows to score the weights on (--held-out): no speed-up will count")
    if config.mode == TRAIN and config.passes == 1:
        found.append("one pass: an update is steady only where its shapes ran before, so there may be no rate")
    return found
