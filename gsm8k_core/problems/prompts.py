"""Problem -> chat messages -> tokens -> one row. The only place that decides what is masked.

One whole problem, as GSM8K writes it, with Qwen2.5's tokenizer:

    Tom has 2 apples and buys 3. How many?

    He has 2 + 3 = <<2+3=5>>5.
    #### 5

The model's own chat template makes turns of it, and these are 63 tokens. Of each, the text ("_" is a space, "↵" the
end of a line), the number, and the mask: 1 where the token is trained, as what should come after all before it.

    <|im_start|> system ↵   S  olve _step _by _step .  _The _last _line _must _be :  _#### _<  number >  <|im_end|> ↵
    151644       8948   198 50 3948 3019  553 3019  13 576  1537  1555  1969  387 25 26274 366 4082   29 151645     198
    0            0      0   0  0    0     0   0     0  0    0     0     0     0   0  0     0   0      0  0          0

    <|im_start|> user ↵   Tom   _has _   2  _apples _and _buys _   3  .  _How _many ?  <|im_end|> ↵
    151644       872  198 24732 702  220 17 40676   323  49531 220 18 13 2585 1657  30 151645     198
    0            0    0   0     0    0   0  0       0    0     0   0  0  0    0     0  0          0

    <|im_start|> assistant ↵
    151644       77091     198
    0            0         0

    He   _has _   2  _+  _   3  _=  _<<  2  +  3  =  5  >>   5  .↵  #### _   5  <|im_end|>
    1519 702  220 17 488 220 18 284 1115 17 10 18 28 20 2452 20 624 820  220 20 151645
    1    1    1   1  1   1   1  1   1    1  1  1  1  1  1    1  1   1    1   1  1

So the prompt's 42 tokens are read and never trained, and the answer's 21 are, with the end of its turn as the last:
without that, a model would never learn to stop. The line end that the template writes after it is no part of the row:
an answer ends at the end token, and nobody asks what would come then.

The row is Example("train-0", tokens=(151644, 8948, 198, ..., 20, 151645), num_prompt=42).

Training and evaluation render the same messages through the model's own chat template, so a prompt has the same ids in
both; models/rendering.py says in which form, and what a model without a template gets. The words of a problem are text,
also those that look like a control token (models/control_tokens.py). Shots, solved examples before the question, are an
evaluation's alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gsm8k_core.models.control_tokens import Rendered, restored
from gsm8k_core.models.rendering import ADVICE, PROMPT_NAME, SYSTEM_PROMPT, Rendering
from gsm8k_core.models.tokenizer import Tokenizer
from gsm8k_core.problems.data import carve_dev, strip_annotations
from gsm8k_core.types import SHOWN_ROWS, DataError, Example, Problem

SHOT_SEED = 0


@dataclass(frozen=True, slots=True)
class Shots:
    """The solved examples before each question, the same ones before all."""

    count: int = 0
    # One more than `count` where there is one: it takes the place of the shot that is the question itself.
    pool: tuple[Problem, ...] = ()
    annotations: str = "keep"

    def prompt_name(self, zero_shot: str = PROMPT_NAME) -> str:
        """The prompt's name with all that decides its words; `zero_shot` is the rendering's name."""
        if not self.count:
            return zero_shot
        content = json.dumps([[shot.question, shot.answer] for shot in self.pool])
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return f"{zero_shot}-{self.count}-shot-{self.annotations}-{digest}"

    def before(self, problem: Problem) -> tuple[Problem, ...]:
        """Those that come before one question, which is never among them."""
        shots = [shot for shot in self.pool if shot.question != problem.question][: self.count]
        if len(shots) < self.count:
            raise DataError(f"{problem.id}: there are only {len(shots)} other train problems; try --shots {len(shots)}")
        return tuple(shots)


NO_SHOTS = Shots()


def choose_shots(train: Sequence[Problem], count: int, annotations: str, seed: int = SHOT_SEED) -> Shots:
    """`count` train problems, never of the dev split: those whose questions' hashes with the seed are the lowest."""
    if not count:
        return NO_SHOTS
    by_question = {problem.question: problem for problem in reversed(carve_dev(train)[0])}  # the first of equal ones
    order = sorted(by_question, key=lambda question: hashlib.sha256(f"{seed}\0{question}".encode()).digest())
    pool = tuple(by_question[question] for question in order[: count + 1])
    if len(pool) < count:
        raise DataError(f"--shots {count}: there are only {len(pool)} train problems; try --shots {len(pool)}")
    if annotations == "strip":
        pool = tuple(replace(shot, answer=strip_annotations(shot.answer)) for shot in pool)
    return Shots(count, pool, annotations)


def messages(
    problem: Problem, with_answer: bool = False, shots: Sequence[Problem] = (), system: str = SYSTEM_PROMPT
) -> list[dict[str, str]]:
    """The conversation of one problem."""
    turns = [{"role": "system", "content": system}]
    for each in (*shots, problem):
        turns.append({"role": "user", "content": each.question})
        turns.append({"role": "assistant", "content": each.answer})
    return turns if with_answer else turns[:-1]


def _render(rendering: Rendering, problem: Problem, with_answer: bool, shots: Sequence[Problem] = ()) -> Rendered:
    try:
        return rendering.render(messages(problem, with_answer, shots, rendering.system), prompt=not with_answer)
    except DataError as error:
        raise DataError(f"{problem.id}: {error}") from error.__cause__


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, and no special ones; what stands in a text like a control token is one."""
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []


def prompt_tokens(rendering: Rendering, problems: Sequence[Problem], shots: Shots = NO_SHOTS) -> list[tuple[int, ...]]:
    """The prompt of each problem, up to and with the start of the assistant's turn."""
    texts = [_render(rendering, problem, False, shots.before(problem)) for problem in problems]
    return [tuple(ids) for ids in rendering.encode(texts)]


def spelled(rendering: Rendering, problems: Sequence[Problem]) -> dict[str, str]:
    """The problems that hold the text of a control token, by id, and which one they hold first."""
    found = {problem.id: rendering.control.first(f"{problem.question}\n{problem.answer}") for problem in problems}
    return {name: token for name, token in found.items() if token is not None}


def spelled_line(found: Mapping[str, str]) -> list[str]:
    """A line for a person, where there are such problems."""
    if not found:
        return []
    some = ", ".join(f"{name} ({token})" for name, token in list(found.items())[:SHOWN_ROWS])
    more = f", and {len(found) - SHOWN_ROWS} more" if len(found) > SHOWN_ROWS else ""
    rows = "1 row spells" if len(found) == 1 else f"{len(found):,} rows spell"
    return [f"text     {rows} a control token, and it stays text: {some}{more}"]


def make_examples(rendering: Rendering, problems: Sequence[Problem], whole_turn: bool = False) -> list[Example]:
    """Training rows, whole: the answer and its end token supervised, the prompt not; the row ends there.

    With `whole_turn`, what the template writes behind the end token (a line end) is trained as well: runs begun before
    2026-11-29 did so, and go on as they began.

    Raises DataError when a prompt is not a token prefix of its row, or when a row has no end token among its
    supervised ones: such a row would train the wrong thing silently.
    """
    ends = frozenset(rendering.end_ids)
    prompts, rows = ([_render(rendering, problem, whole) for problem in problems] for whole in (False, True))
    for problem, asked, text in zip(problems, prompts, rows, strict=True):
        if problem.answer.strip() not in restored(text.text.removeprefix(asked.text), text.hidden):
            raise DataError(f"{problem.id}: the chat template writes no answer behind the question; {ADVICE}")
    examples = []
    for problem, prompt, row in zip(problems, rendering.encode(prompts), rendering.encode(rows), strict=True):
        if not prompt or row[: len(prompt)] != prompt:
            raise DataError(
                f"{problem.id}: with this chat template the prompt's tokens are not the start of the row's; "
                "use a model whose template keeps the prompt as it is when the answer follows"
            )
        if ends.isdisjoint(row[len(prompt) :]):
            raise DataError(
                f"{problem.id}: the chat template closes the answer with none of the end tokens {sorted(ends)}"
            )
        end = len(row) if whole_turn else _end(rendering.tokenizer, row, len(prompt), ends)
        examples.append(Example(problem.id, tuple(row[:end]), len(prompt)))
    return examples


def _end(tokenizer: Tokenizer, row: Sequence[int], num_prompt: int, ends: frozenset[int]) -> int:
    """How many tokens a row has up to the one that ends the answer, itself included.

    That is the last end token, or an earlier one with nothing but white space between: some templates close the turn,
    and then the text as well. One inside of an answer ends nothing: no answer is cut.
    """
    places = [place for place in range(num_prompt, len(row)) if row[place] in ends]
    last = places.pop()
    while places and not decode(tokenizer, row[places[-1] + 1 : last]).strip():
        last = places.pop()
    return last + 1


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of a completion, special tokens left out."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
