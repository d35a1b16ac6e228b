"""One training run of one contender, in a process of its own: python benchmarks/train_throughput.py JOB.json

With --world, each of several processes that the backend's launcher started; rank 0 measures.
`python cli.py benchmark train` writes the job and reads the sample. Every contender gets the same rows in the same
order, the same optimizer (AdamW, betas 0.9 and 0.999, eps 1e-8, no weight decay, a constant rate), the same first
values of an adapter, and the same precision class.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import psutil

import backends
from benchmarks.job import TrainJob
from benchmarks.measure import Tape, check_tokens, open_device
from gsm8k_core.files import write_bytes
from gsm8k_core.ranks.follower import follow
from gsm8k_core.ranks.leader import Ranks
from gsm8k_core.ranks.meeting import JOIN, late, meet, within
from gsm8k_core.ranks.wire import end_process
from gsm8k_core.ranks.world import world_of
from gsm8k_core.types import Example, Problem, RankLostError

# What a contender returns: the loss of the first update before any step, and its trained tensors when asked.
Outcome = tuple[float, Callable[[], Mapping[str, Any]]]


def main(path: Path) -> None:
    job = TrainJob.model_validate_json(path.read_bytes())
    if (world := world_of(os.environ)) is None:
        measure(job)
        return
    backends.resolve(world.engine)
    with within(JOIN + 5, late(world)):
        group = backends.join(world, job.device, JOIN)
    lines = meet(world, group, {}, lambda what: end_process(what, RankLostError.exit_code))
    if not world.leads:
        sys.exit(follow(lines[0], group, backends.open))
    backends.share(Ranks(group, lines, world.launcher).open)
    code = 1
    try:
        measure(job, [line.process for line in lines if line.process is not None])
        code = 0
    finally:  # the others hear of the end, and leave it to this rank to say why
        for line in lines:
            line.close(code)


def measure(job: TrainJob, others: Sequence[int] = ()) -> None:
    """Train and write the sample; `others` are the processes that share the work."""
    device = open_device(job.framework, job.device, job.dtype)
    processes = [psutil.Process(), *map(psutil.Process, others)]
    tape = Tape(job, device, processes[0].create_time(), processes)
    first_loss, trained = CONTENDERS[job.contender](job, tape)
    sample = tape.sample(first_loss)  # memory is read before anything is saved
    if job.trained is not None:
        from safetensors.numpy import save_file

        save_file(dict(trained()), str(job.trained))
    write_bytes(job.out, sample.model_dump_json().encode())


def ours(job: TrainJob, tape: Tape) -> Outcome:
    """This project, through the interface that `train` uses."""
    from gsm8k_core.problems.batching import budgeted, choose_tokens, over_ranks
    from gsm8k_core.types import Orders, Update, UpdateStats

    backend = backends.open(job.framework, job.model, job.device, job.dtype)
    config, size = job.config, len(tape.processes)
    by_memory = backends.device_memory(job.framework, job.device).caps_alone
    asked = config.micro_batch_tokens, config.batch_size, config.max_length
    tokens = choose_tokens(*asked, backend.micro_batch_tokens, by_memory)
    config = config.model_copy(update={"micro_batch_tokens": tokens.name})  # by which the ranks' rows are dealt out
    examples = _tokenised(job)
    shapes: dict[int, list[tuple[int, ...]]] = {}

    def updates() -> Iterator[Update]:
        """Cut and padded while the clock runs, as in `train` and as the peers do."""
        for number, rows in enumerate(job.updates * job.passes, start=1):
            batches = budgeted([examples[row.id] for row in rows], int(tokens.name))
            update = Update(number, 0, tuple(row.id for row in rows), batches)
            shares = over_ranks(update, size, int(tokens.name)) if size > 1 else [update]
            shapes[number] = [batch.tokens.shape for share in shares for batch in share.micro_batches]
            yield update

    class Recorder:
        """A pilot that keeps the rate and notes what happens."""

        def rate(self, update: int) -> float:
            return config.learning_rate

        def after(self, stats: UpdateStats, live: Any) -> Orders:
            for shape in shapes.pop(stats.update):
                tape.ran(*shape)
            tape.losses.append(stats.loss)
            tape.update_done()
            return Orders()

    tape.start()
    backend.train(updates(), config, Recorder())
    return tape.losses[0], lambda: backend.state().parameters


def _tokenised(job: TrainJob) -> dict[str, Example]:
    """From the messages, in this process, as each peer does it."""
    from gsm8k_core.models.folder import ModelFolder
    from gsm8k_core.problems.prompts import make_examples

    rows = [row for update in job.updates for row in update]
    problems = [Problem(row.id, row.messages[-2]["content"], row.messages[-1]["content"], gold="") for row in rows]
    model = ModelFolder(job.model)
    examples = make_examples(model.rendering, problems)
    for row, example in zip(rows, examples, strict=True):
        check_tokens("our tokenizer", row, example.tokens, example.num_prompt)
    return {example.id: example for example in examples}


def _peer(name: str) -> Callable[[TrainJob, Tape], Outcome]:
    def run(job: TrainJob, tape: Tape) -> Outcome:
        from benchmarks import train_peers  # here, not above: ours must not be measured with the peers' imports

        return getattr(train_peers, name)(job, tape)

    return run


CONTENDERS: dict[str, Callable[[TrainJob, Tape], Outcome]] = {
    "ours-mlx": ours,
    "ours-torch": ours,
    "mlx-lm": _peer("mlx_lm_lora"),
    "mlx-lm-double": _peer("mlx_lm_lora"),
    "trl": _peer("trl_shipped"),
    "trl-best": _peer("trl_best"),
    "hf": _peer("hf_trainer"),
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
