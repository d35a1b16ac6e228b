"""Five faults, done to Hugging Face's Trainer, to mlx_lm.lora and to us: what each of them does then.

    python benchmarks/peer_faults.py            a line per program and fault, as a Markdown table

A tiny model, six updates, a save after each second one, CPU. Each run is a process of its own; a disk that is full is
a tmpfs (root on Linux). The peers are used as their own documentation shows it: Trainer(...).train(
resume_from_checkpoint=True), `mlx_lm.lora --train --resume-adapter-file`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gsm8k_core.machine import ROOT
from gsm8k_core.parity import tiny

UPDATES, EVERY = 6, 2
FAULTS = ("kill -9 inside a save", "truncated newest save", "a NaN weight", "a broken line of data", "a full disk")
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def prepare(folder: Path) -> None:
    """A model large enough that a save takes a while, and 24 rows in each program's form."""
    tiny.make(folder / "model", hidden_size=256, intermediate_size=512)
    for split in ("train", "valid", "test"):
        with (folder / f"{split}.jsonl").open("w") as file:
            for number in range(24):
                a, b = 2 + number % 4, 2 + number % 3
                question, answer = f"Tom buys {a} apples and {b} more .", f"he has {a} + {b} = {a + b} .\n#### {a + b}"
                row = {"question": question, "answer": answer, "prompt": question, "completion": answer}
                file.write(json.dumps(row) + "\n")


HF = """
import json, sys
from pathlib import Path
import torch, transformers
from datasets import load_dataset
model, data, out, resume = sys.argv[1:5]
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
def encode(row):
    text = row["question"] + " " + row["answer"]
    ids = tokenizer(text, truncation=True, padding="max_length", max_length=24)["input_ids"]
    return {"input_ids": ids, "labels": ids}
rows = load_dataset("json", data_files=data + "/train.jsonl", split="train", cache_dir=data + "/cache")
rows = rows.map(encode, remove_columns=rows.column_names)
settings = transformers.TrainingArguments(
    output_dir=out, max_steps=6, save_steps=2, per_device_train_batch_size=4, logging_steps=1, learning_rate=1e-3,
    report_to=[], use_cpu=True, seed=0, disable_tqdm=True)
net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
trainer = transformers.Trainer(model=net, args=settings, train_dataset=rows, processing_class=tokenizer)
trainer.train(resume_from_checkpoint=True if resume == "yes" else None)
trainer.save_model(out + "/final")
print("LOSSES", [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
"""


class Program(ABC):
    """One contender: how it trains, where it saves, and how it is asked to go on."""

    name = ""
    saves = "*.safetensors"  # under the output folder

    @abstractmethod
    def command(self, work: Path, out: Path, resume: bool) -> list[str]: ...

    @abstractmethod
    def second_save_began(self, out: Path) -> bool: ...

    def run(self, work: Path, out: Path, resume: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(work, out, resume),
            env={**os.environ, **QUIET},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


class Ours(Program):
    def __init__(self, backend: str) -> None:
        self.name, self._backend = f"ours, {backend}", backend

    def command(self, work: Path, out: Path, resume: bool) -> list[str]:
        start = [sys.executable, "cli.py", "train"]
        if resume:
            return [*start, "--resume", str(out)]
        return [
            *start,
            "--model",
            str(work / "model"),
            "--data",
            str(work),
            "--backend",
            self._backend,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--batch-size",
            "4",
            "--gradient-accumulation-steps",
            "1",
            "--max-samples",
            "24",
            "--num-epochs",
            "1",
            "--save-steps",
            str(EVERY),
            "--learning-rate",
            "1e-3",
            "--output-dir",
            str(out),
        ]

    def second_save_began(self, out: Path) -> bool:
        return any((out / "checkpoints").glob(".update-000004.*"))


class Trainer(Program):
    name = "HF Trainer"

    def second_save_began(self, out: Path) -> bool:
        return (out / "checkpoint-4").exists()

    def command(self, work: Path, out: Path, resume: bool) -> list[str]:
        return [sys.executable, "-c", HF, str(work / "model"), str(work), str(out), "yes" if resume else "no"]


class MlxLm(Program):
    name = "mlx_lm.lora"

    def second_save_began(self, out: Path) -> bool:
        """It writes adapters.safetensors over, then a copy under the number of the update."""
        first, now = out / "0000002_adapters.safetensors", out / "adapters.safetensors"
        return first.exists() and now.stat().st_mtime_ns > first.stat().st_mtime_ns

    def command(self, work: Path, out: Path, resume: bool) -> list[str]:
        again = ["--resume-adapter-file", str(out / "adapters.safetensors")] if resume else []
        return [
            sys.executable,
            "-m",
            "mlx_lm",
            "lora",
            "--train",
            "--model",
            str(work / "model"),
            "--data",
            str(work),
            "--adapter-path",
            str(out),
            "--fine-tune-type",
            "full",
            "--num-layers",
            "-1",
            "--iters",
            str(UPDATES),
            "--save-every",
            str(EVERY),
            "--steps-per-report",
            "1",
            "--steps-per-eval",
            "100",
            "--val-batches",
            "1",
            "--batch-size",
            "4",
            "--learning-rate",
            "1e-3",
            *again,
        ]


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """How it ended: its exit code, and its error where there was one."""
    lines = [line.strip() for line in (done.stderr or "").splitlines() if line.strip()]
    if done.returncode == 0:
        return "exit 0"
    traceback = "a traceback, " if any(line.startswith("Traceback") for line in lines) else ""
    return f"exit {done.returncode}, {traceback}`{lines[-1][:150].replace('|', '/') if lines else ''}`"


def state_of(folder: Path, saves: str) -> str:
    """How many of the saved weight files under a folder can be read, and whether their numbers are finite."""
    whole = torn = nan = 0
    for path in sorted(folder.rglob(saves)):
        if path.name == "moments.safetensors":
            continue
        try:
            values = load_file(path)
        except (SafetensorError, OSError, ValueError):
            torn += 1
        else:
            whole += 1
            nan += any(not np.isfinite(value).all() for value in values.values())
    return f"{whole} whole" + (f", {torn} torn" if torn else "") + (f", {nan} of them with NaN" if nan else "")


# --- the faults -------------------------------------------------------------------------------------------------------


def killed_in_a_save(program: Program, work: Path, out: Path) -> str:
    """Ten times: killed while the second save is being written; then asked to go on."""
    went_on, torn, words = 0, 0, ""
    for number in range(10):
        folder = out / str(number)
        process = subprocess.Popen(
            program.command(work, folder, False),
            env={**os.environ, **QUIET},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait_for_second_save(process, program, folder)
        time.sleep(number * 0.0004)
        process.kill()
        process.wait()
        torn += "torn" in state_of(folder, program.saves)
        again = program.run(work, folder, resume=True)
        went_on += again.returncode == 0
        words = words if again.returncode == 0 else last_words(again)
    return f"{went_on} of 10 went on, {torn} with a torn file of weights" + (f"; {words}" if words else "")


def _wait_for_second_save(process: subprocess.Popen[bytes], program: Program, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not program.second_save_began(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0003)


def truncated(program: Program, work: Path, out: Path) -> str:
    """The newest save loses its last byte; then it is asked to go on."""
    assert program.run(work, out).returncode == 0
    for name in ("final", "model"):  # the run did not come to its end
        shutil.rmtree(out / name, ignore_errors=True)
    if (out / "run.json").exists():
        values = json.loads((out / "run.json").read_text())
        (out / "run.json").write_text(json.dumps({**values, "status": "running"}))
    newest = max(out.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    if (out / "adapters.safetensors").exists():
        newest = out / "adapters.safetensors"
    os.truncate(newest, newest.stat().st_size - 1)
    again = program.run(work, out, resume=True)
    named = [line for line in again.stdout.splitlines() if "is passed over" in line or line.startswith("resume")]
    return last_words(again) + (f"; said: `{' '.join(named)[:60]}...`" if named else "")


def not_finite(program: Program, work: Path, out: Path) -> str:
    path = work / "model/model.safetensors"
    values = load_file(path)
    values["model.norm.weight"][0] = np.nan
    save_file(values, path, {"format": "pt"})
    done = program.run(work, out)
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "nan" in line or "'loss'" in line]
    return f"{last_words(done)}; saved: {state_of(out, program.saves)}; said: `{said[-1][:90] if said else 'nothing'}`"


def broken_data(program: Program, work: Path, out: Path) -> str:
    path = work / "train.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = lines[6][:30]
    path.write_text("\n".join(lines) + "\n")
    done = program.run(work, out)
    placed = "train.jsonl:7" in done.stderr or "line 7" in done.stderr
    return f"{last_words(done)}; names line 7 of the file: {'yes' if placed else 'no'}"


def full_disk(program: Program, work: Path, out: Path) -> str:
    """A disk with room for one save and a half; after it has grown, it is asked to go on."""
    size = sum(path.stat().st_size for path in (work / "model").rglob("*.safetensors")) // 1024
    kilobytes = {"HF Trainer": 5 * size, "mlx_lm.lora": size + size // 2}.get(program.name, 5 * size)
    with small_disk(out, kilobytes):
        done = program.run(work, out)
        left = state_of(out, program.saves)
        subprocess.run(["mount", "-o", f"remount,size={40 * size}k", str(out)], check=True)
        again = program.run(work, out, resume=True)
        return f"{last_words(done)}; left: {left}; then: {last_words(again)}"


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


CASES: dict[str, Callable[[Program, Path, Path], str]] = dict(
    zip(FAULTS, (killed_in_a_save, truncated, not_finite, broken_data, full_disk), strict=True)
)


def main(wanted: list[str]) -> int:
    """Each fault on each program; words in `wanted` choose among both."""
    packages = ("transformers", "mlx-lm", "torch", "mlx")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{versions}\n\n| fault | program | what happened |\n|---|---|---|")
    for fault, case in CASES.items():
        for program in (Ours("torch"), Ours("mlx"), Trainer(), MlxLm()):
            if wanted and not any(word in f"{fault} {program.name}" for word in wanted):
                continue
            with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
                work = Path(scratch) / "work"
                work.mkdir()
                prepare(work)
                out = Path(scratch) / "out" / "run"
                out.parent.mkdir()
                print(f"| {fault} | {program.name} | {case(program, work, out)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
