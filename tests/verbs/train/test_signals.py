"""What a signal says that stops a run."""

from __future__ import annotations

import signal

import pytest

from verbs.train.signals import stopping


@pytest.mark.parametrize(
    ("last", "said"), [(True, "finishing this update, then saving the model"), (False, "what is there so far is kept")]
)
def test_a_model_is_promised_where_one_is_made(last: bool, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with stopping(lambda: last) as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
    assert said in capfd.readouterr().err
