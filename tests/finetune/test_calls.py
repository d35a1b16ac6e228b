"""The verbs from Python: every public docstring's example, the notebook, and what differs from the command line."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import gsm8k_finetune
from gsm8k_finetune import Comparison, GSM8KError, TrainedRun, calls
from tests import tiny

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
SMALL = {"data": "generated", "backend": "torch", "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("calls") / "tiny", "llama")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frameworks: None) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_each_call_has_an_example_and_all_of_them_hold(model: Path, place: Path) -> None:
    names = {"MODEL": str(model), "DATA": "generated", **vars(gsm8k_finetune)}
    runner, finder = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), doctest.DocTestFinder(recurse=False)
    for call in (calls.train, calls.evaluate, calls.compare):
        (found,) = finder.find(call, globs=dict(names))
        assert found.examples, call
        said: list[str] = []
        assert runner.run(found, out=said.append).failed == 0, "".join(said)


def test_what_is_exported_is_listed_typed_and_described() -> None:
    for name in gsm8k_finetune.__all__:
        each = getattr(gsm8k_finetune, name)
        if name != "__version__":
            assert inspect.getdoc(each), name
        if inspect.isfunction(each):
            assert set(each.__annotations__) == {*inspect.signature(each).parameters, "return"}


class Cells(HTMLParser):
    """The tags of a table for a notebook, and whether anything could run or load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {name for name, _ in attributes} - {"style"}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_tables_in_which_nothing_runs(model: Path, place: Path) -> None:
    """A model's name is a stranger's text."""
    evil = "<script>alert(1)</script>\x1b"
    scores = gsm8k_finetune.evaluate(model, max_samples=4, max_new_tokens=4, quiet=True, **SMALL)
    shown = Cells(gsm8k_finetune.Scores({**scores.summary, "model": evil})._repr_html_())
    assert "script" not in shown.tags
    assert "<script>" in shown.text
    assert "\x1b" not in shown.text
    assert "robust" in shown.text
    assert "4 problems" in shown.text


def test_the_lines_are_the_verbs_and_quiet_is_quiet(model: Path, place: Path, capfd: Any) -> None:
    gsm8k_finetune.evaluate(model, max_samples=2, max_new_tokens=2, **SMALL)
    assert "problems 2 test problems" in capfd.readouterr().out
    gsm8k_finetune.evaluate(model, max_samples=2, max_new_tokens=2, quiet=True, **SMALL)
    assert capfd.readouterr().out == ""


def is_let_go_by_an_error(run: TrainedRun) -> None:
    """A notebook keeps the last error, and its traceback all that is held there: the next try found the run in use."""
    from backends.torch import train

    path = run.folder / "run.json"
    manifest = json.loads(path.read_text())
    with pytest.raises(GSM8KError, match="num_epochs: 1 -> 2") as before_its_model:
        gsm8k_finetune.train(resume=run, num_epochs=2, quiet=True)
    path.write_text(json.dumps(manifest | {"status": "running"}))
    with train.one_run(), pytest.raises(GSM8KError, match="another training is at work") as behind_it:
        gsm8k_finetune.train(resume=run, quiet=True)
    path.write_text(json.dumps(manifest | {"guard": 1}))
    with pytest.raises(GSM8KError, match="guard must be") as damaged:
        gsm8k_finetune.train(resume=run, quiet=True)
    path.write_text(json.dumps(manifest))
    assert gsm8k_finetune.train(resume=run, quiet=True).status == "done"
    assert None not in (before_its_model, behind_it, damaged)


def test_a_run_and_a_path_go_where_a_text_is_asked_for_and_all_is_all(model: Path, place: Path) -> None:
    run = gsm8k_finetune.train(
        model=model, max_samples=8, num_epochs=1, output_dir=place / "one", guard_problems=0, quiet=True, **SMALL
    )
    again = gsm8k_finetune.train(resume=run, quiet=True)
    assert (again.folder, again.status) == (run.folder, "done")
    is_let_go_by_an_error(TrainedRun(shutil.copytree(run.folder, place / "copy")))
    scores = gsm8k_finetune.evaluate(run, all=True, max_new_tokens=1, quiet=True, **SMALL)
    assert scores.n == 400
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "upd')  # one that is being written
    assert len(run.losses) == run.updates == 1
    (run.folder / "metrics.jsonl").write_text('{"event": "a\u2028b"}\n', encoding="utf-8")
    assert run.events == [{"event": "a\u2028b"}]
    with pytest.raises(GSM8KError, match="cannot be read"):
        _ = TrainedRun(place / "none").events


def test_a_notebooks_worker_thread_can_train(model: Path, place: Path) -> None:
    """Signals can be caught by the main thread alone."""
    with ThreadPoolExecutor() as pool:
        asked = dict(model=model, max_samples=8, num_epochs=1, output_dir="two", guard_problems=0, quiet=True, **SMALL)
        run = pool.submit(lambda: gsm8k_finetune.train(**asked)).result()
    assert run.status == "done"
    from backends.torch import train

    for busy in (train.one_run(), train._TRAINS):  # a run that has not come to its training yet; one without a run
        with busy, pytest.raises(GSM8KError, match="another training is at work in this process"):
            gsm8k_finetune.train(**asked | {"output_dir": "beside"})
        assert not (place / "beside").exists()
    assert gsm8k_finetune.train(**asked | {"output_dir": "beside"}).status == "done"


def test_threads_load_their_models_one_after_another(model: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loads at once leave transformers without its tie_weights, until the process ends."""
    from transformers import AutoModelForCausalLM

    from backends.torch import load

    original, held = AutoModelForCausalLM.from_pretrained, []

    def watched(*args: Any, **more: Any) -> Any:
        held.append(load._ONE_AT_A_TIME.locked())
        return original(*args, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    with ThreadPoolExecutor() as pool:
        asked = dict(max_samples=2, max_new_tokens=2, quiet=True, **SMALL)
        both = [pool.submit(gsm8k_finetune.evaluate, model, output_dir=place / name, **asked) for name in "ab"]
        assert [each.result().n for each in both] == [2, 2]
    assert held == [True, True]
    assert not load._ONE_AT_A_TIME.locked()


def test_bad_settings_are_the_same_one_line(place: Path) -> None:
    for call, words in (
        (lambda: gsm8k_finetune.train(max_tiem="1m"), "there is no setting 'max_tiem'"),
        (lambda: gsm8k_finetune.train(max_time="soon"), "--max-time must be a number of seconds"),
        (lambda: gsm8k_finetune.train(gsm8k_finetune.Config(), seed=1), "not both"),
        (lambda: gsm8k_finetune.train(dry_run=True), "dry_run makes no run"),
        (lambda: gsm8k_finetune.train(print_config=True), "print_config makes no run"),
        (
            lambda: gsm8k_finetune.train("embedded"),
            "config must be a TrainConfig .got str.; else give",
        ),
        (lambda: gsm8k_finetune.evaluate(config=gsm8k_finetune.Config()), "config must be a EvalConfig"),
        (lambda: gsm8k_finetune.evaluate("nowhere/at/all"), "nowhere/at/all"),
        (lambda: gsm8k_finetune.compare(), "trained model"),
        (lambda: gsm8k_finetune.compare(trained_model=["a", "b"]), "one trained model here; call it for each"),
    ):
        with pytest.raises(GSM8KError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_the_notebook_runs_from_its_first_cell_to_its_last(model: Path, place: Path) -> None:
    """On a tiny model: its cell of settings is replaced, all others run as they stand, and each shows something."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for cell in code:
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            source = f"MODEL, DATA, TIME, ROWS, PROBLEMS, TOKENS = {str(model)!r}, 'generated', '30m', 8, 4, 4"
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "notebook", "exec"), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
            assert shown is not None, source
    assert isinstance(names["run"], TrainedRun)
    assert isinstance(names["found"], Comparison)
    assert names["run"].status == "done"
    outputs = [cell["outputs"] for cell in code]
    assert sum(map(bool, outputs)) >= 3, "the notebook is kept with what a real run showed"
