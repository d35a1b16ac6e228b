"""A model reference becomes a folder: from here, from the cache, from the Hub, or not at all and quickly."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.models import hub as hub_source
from gsm8k_core.models.find import refuse_replaced, require_model, resolve_model, wanted_files
from gsm8k_core.training.runs import reopen
from gsm8k_core.types import DataError, UsageError
from tests.fake_hub import Waits, waits

QWEN = "Qwen/Qwen2.5-0.5B-Instruct"


def quiet(_: str) -> None:
    pass


def refused(reference: str) -> tuple[str, Waits]:
    """The message, and what was waited for."""
    with waits() as waited, pytest.raises(DataError) as caught:
        resolve_model(reference, quiet)
    return str(caught.value), waited


def is_quick(waited: Waits, questions: int = 1) -> bool:
    """At most so many questions, and no second try: with a person's patience that is a second, or nothing."""
    return len(waited.questions) == questions and waited.sleeps == [] and hub_source.PROBE_SECONDS <= 1


def test_cold_downloads_and_says_the_size_first(hub: Any) -> None:
    said: list[str] = []
    source = resolve_model(QWEN, said.append)
    assert source.choice.name == "hub"
    assert source.name == QWEN
    names = {path.name for path in source.folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    size = sum(path.stat().st_size for path in source.folder.iterdir())
    assert len(said) == 1
    assert hub_source.human_size(size) in said[0]
    assert QWEN in said[0]
    assert not [line for line in hub.requests if line.endswith((".bin", ".py", ".md"))]


def test_the_time_of_a_download_is_known_and_the_cache_takes_none(hub: Any) -> None:
    before = hub_source.seconds_downloading()
    resolve_model(QWEN, quiet)
    spent = hub_source.seconds_downloading()
    assert spent > before
    resolve_model(QWEN, quiet)
    assert hub_source.seconds_downloading() == spent


def test_what_was_downloaded_is_a_model(hub: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model(QWEN, quiet).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert len(tokenizer) <= model.config.vocab_size


def test_cached_asks_no_network(hub: Any) -> None:
    first = resolve_model(QWEN, quiet)
    hub.stop()
    asked = len(hub.requests)
    second = resolve_model(QWEN, quiet)
    assert second.choice.name == "cache"
    assert second.folder == first.folder
    assert len(hub.requests) == asked


def test_cached_without_a_branch_name_is_found(hub: Any) -> None:
    first = resolve_model(QWEN, quiet)
    (first.folder.parents[1] / "refs" / "main").unlink()  # as a download by commit leaves it
    hub.stop()
    assert resolve_model(QWEN, quiet).folder == first.folder


def test_cut_download_is_an_error_then_goes_on(hub: Any) -> None:
    hub.cut = 0
    message, _ = refused(QWEN)
    assert "not downloaded whole" in message
    assert "run the same command again" in message
    hub.cut = None
    assert resolve_model(QWEN, quiet).choice.name == "hub"


def _status(code: int) -> Callable[[Any, pytest.MonkeyPatch], None]:
    return lambda hub, _: setattr(hub, "status", code)


UNAVAILABLE = {
    "unauthorised": (_status(401), "refused it (401"),
    "forbidden": (_status(403), "refused it (403"),
    "broken": (_status(503), "error (503)"),
    "slow": (lambda hub, monkeypatch: hub.silence(monkeypatch), "did not answer in 1 s"),
    "stopped": (lambda hub, _: hub.stop(), "could not be reached"),
    "offline": (lambda _, monkeypatch: monkeypatch.setenv("HF_HUB_OFFLINE", "1"), "HF_HUB_OFFLINE is set"),
}


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_unavailable_is_one_clear_line_after_one_question(case: str, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arrange, reason = UNAVAILABLE[case]
    arrange(hub, monkeypatch)
    message, waited = refused(QWEN)
    assert is_quick(waited, questions=0 if case == "offline" else 1)
    assert reason in message
    assert QWEN in message
    assert "give a folder's path, embedded, or " in message  # export and compare have no --model
    assert "\n" not in message


def test_gated(hub: Any) -> None:
    hub.file_status = 403  # the look-up of a gated repository succeeds, its files do not
    message, waited = refused(QWEN)
    assert is_quick(waited)
    assert "refused it (403: it is private, gated" in message


def test_unknown_name(hub: Any) -> None:
    message, waited = refused("nobody/nothing")
    assert is_quick(waited)
    assert "no such model (404)" in message
    assert "check the name" in message


def test_hanging_name_server_is_bounded(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        threading.Event().wait()

    hub.silence(monkeypatch)
    monkeypatch.setattr("socket.getaddrinfo", hang)
    message, waited = refused(QWEN)
    assert is_quick(waited)
    assert "did not answer" in message


@pytest.mark.parametrize("page", [b"<html>Log in to this network</html>", b"[]", b"{}", b'{"siblings": [1]}', b""])
def test_an_answer_that_is_not_a_hubs(page: bytes, hub: Any) -> None:
    hub.page = page
    message, _ = refused(QWEN)
    assert f"{hub.url} does not answer as a Hub does" in message


@pytest.mark.parametrize("address", ["file:///etc", "nonsense", "http://[", "http://127.0.0.1:99999"])
def test_an_address_that_is_none(address: str, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    message, waited = refused(QWEN)
    assert is_quick(waited)
    assert "not cached, and" in message


def test_the_token_goes_to_the_hub_and_not_with_a_redirect(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fake_hub import FakeHub

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with FakeHub(hub.repositories) as other:
        hub.moved = other.url
        hub_source.look_up(QWEN, "model")
        assert hub.tokens == ["Bearer hf_secret"]
        assert other.tokens == [None]


def test_the_token_of_a_login_is_found(hub: Any, caches: Path) -> None:
    (caches / "hf").mkdir()
    (caches / "hf" / "token").write_text("hf_file\n")
    hub_source.look_up(QWEN, "model")
    assert hub.tokens == ["Bearer hf_file"]


@pytest.mark.parametrize(
    ("text", "kept_out"),
    [
        ("Illegal header value b'Bearer hf_secretsecret'", "secret"),
        ("cannot connect to http://ann:secret@proxy:3128", "secret"),
    ],
)
def test_no_secret_in_a_reason(text: str, kept_out: str) -> None:
    assert kept_out not in hub_source._reason(RuntimeError(text))


def test_a_folder_of_this_machine(model_folder: Path, caches: Path) -> None:
    source = resolve_model(str(model_folder), quiet)
    assert source.choice.name == "folder"
    assert source.folder == model_folder


def test_a_folder_wins_over_a_hub_id(model_folder: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (caches / "here" / "Qwen").mkdir(parents=True)
    model_folder.rename(caches / "here" / QWEN)
    monkeypatch.chdir(caches / "here")
    source = resolve_model(QWEN, quiet)
    assert source.choice.name == "folder"
    assert source.folder.is_absolute()


def test_a_run_folder_means_its_model(model_folder: Path, caches: Path) -> None:
    run = caches / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    message, _ = refused(str(run))
    assert message.endswith(f"; train it first: python cli.py train --resume {run}")
    (run / "run.json").write_text('{"status": "done"}')
    message, _ = refused(str(run))
    assert message.endswith("; bring it back, or start a new run")  # --resume would say that nothing is left to do
    model_folder.rename(run / "model")
    assert resolve_model(str(run), quiet).folder == run / "model"


def test_a_phase_of_a_run_goes_on_with_the_run(
    model_folder: Path, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = caches / "run/rollouts/warm"
    warm.mkdir(parents=True)
    for folder in (caches / "run", warm):
        (folder / "run.json").write_text('{"status": "stopped"}')
    ends = f"train it first: python cli.py train --resume {caches / 'run'}"
    message, _ = refused(str(warm))
    assert message.endswith(ends)
    with pytest.raises(UsageError, match=rf"a part of a run, which goes on as a whole: --resume {caches / 'run'}$"):
        reopen(warm)
    assert not (warm / ".lock").exists()
    monkeypatch.chdir(warm)
    message, _ = refused(".")
    assert message.endswith(ends)
    monkeypatch.chdir(caches)
    checkpoint = warm / "checkpoints/update-000012"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    model_folder.rename(checkpoint / "model")
    message, _ = refused("run/rollouts/warm")
    newest = "run/rollouts/warm/checkpoints/update-000012"
    assert message.endswith(f"; give its newest checkpoint, {newest}, or train on: python cli.py train --resume run")


def test_a_runs_model_is_of_the_save_that_was_there_before_it_was_read(model_folder: Path, caches: Path) -> None:
    run = caches / "run"
    run.mkdir()
    shutil.copytree(model_folder, run / "best")
    model_folder.rename(run / "model")
    (caches / "link").symlink_to(run / "model")
    (run / "run.json").write_text('{"model_save": "first"}')
    sources = {name: resolve_model(str(caches / name), quiet) for name in ("run", "run/model", "link", "run/best")}
    assert {name: each.save for name, each in sources.items()} == {
        "run": "first",
        "run/model": "first",
        "link": "first",
        "run/best": "",  # which has a label of its own
    }
    for source in sources.values():
        refuse_replaced(source)
    (run / "run.json").write_text('{"model_save": null}')
    refuse_replaced(sources["run/best"])
    with pytest.raises(DataError, match="was saved anew by its run while it was read here"):
        refuse_replaced(sources["run"])
    (run / "run.json").write_text("[")
    assert resolve_model(str(run), quiet).save == ""


@pytest.mark.parametrize(
    "reference",
    ["./nothing", "../nothing", "/nothing/here", "~/nothing", "~nobody-at-all/x", "a/b/c", "", "\0", "a b"],
)
def test_a_path_that_is_not_there(reference: str, hub: Any) -> None:
    message, waited = refused(reference)
    assert is_quick(waited, questions=0)
    assert "not a folder here" in message
    assert hub.requests == []


def test_a_file_is_no_model(model_folder: Path, caches: Path) -> None:
    message, _ = refused(str(model_folder / "config.json"))
    assert "is a file, not a folder" in message


@pytest.mark.parametrize("reference", ["./nothing", "a b", "nobody/nothing"])
def test_require_is_the_error_of_resolve(reference: str, hub: Any) -> None:
    with pytest.raises(DataError) as caught:
        require_model(reference)
    assert str(caught.value) == refused(reference)[0]


def test_require_downloads_and_converts_nothing(hub: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsm8k_core.models.find.embedded_folder", None)
    require_model("embedded")
    require_model(str(model_folder))
    assert hub.requests == []
    require_model(QWEN)
    assert hub.requests == [f"GET api/models/{QWEN}"]
    resolve_model(QWEN, quiet)
    hub.stop()
    require_model(QWEN)  # cached


def test_pickled_weights_are_not_downloaded() -> None:
    listing = hub_source.Listing("a/b", "model", {"config.json": 1, "pytorch_model.bin": 2, "tokenizer.json": 3})
    with pytest.raises(DataError, match=r"has no model.safetensors; pickled weights can run code"):
        wanted_files(listing)


def test_shards_and_nothing_of_subfolders_are_downloaded() -> None:
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    wanted += ["model.safetensors.index.json", "tokenizer.json"]
    others = ["onnx/model.safetensors", "x/../../tokenizer.json", "consolidated.safetensors", "modeling.py"]
    assert wanted_files(hub_source.Listing("a/b", "model", dict.fromkeys([*others, *wanted], 1))) == wanted
