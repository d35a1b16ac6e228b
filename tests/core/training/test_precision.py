"""The compute dtype is chosen by a measured micro-batch, in bounded time."""

from __future__ import annotations

from gsm8k_core.training.memory import NOT_FINITE, OUT_OF_MEMORY, PROBE_SECONDS, fastest, time_each


class Device:
    """A clock, and how long a micro-batch takes in each dtype: the first time, and after that."""

    def __init__(self, **seconds: tuple[float, float]) -> None:
        self.now, self._seconds, self.runs = 0.0, seconds, list[str]()

    def step(self, dtype: str) -> str:
        first, later = self._seconds[dtype]
        self.now += later if dtype in self.runs else first
        self.runs.append(dtype)
        return ""

    def clock(self) -> float:
        return self.now


def test_the_second_run_counts() -> None:
    device = Device(float32=(2.0, 0.4), bfloat16=(2.0, 0.2))
    found = time_each(("float32", "bfloat16"), device.step, device.clock)
    assert fastest(found).name == "bfloat16"
    assert fastest(found).reason == "one micro-batch, forward and backward: float32 400 ms, bfloat16 200 ms"


def test_a_small_gain_is_none() -> None:
    assert fastest({"float32": 0.21, "bfloat16": 0.2}).name == "float32"


def test_what_is_out_is_said_and_not_taken() -> None:
    choice = fastest({"float32": 0.3, "bfloat16": NOT_FINITE, "float16": OUT_OF_MEMORY})
    assert choice.name == "float32"
    assert "bfloat16 not finite, float16 out of memory" in choice.reason


def test_float32_too_may_be_out() -> None:
    assert fastest({"float32": OUT_OF_MEMORY, "bfloat16": 0.3}).name == "bfloat16"


def test_a_slow_device_is_measured_less() -> None:
    device = Device(float32=(40.0, 40.0), bfloat16=(1.0, 1.0))
    assert time_each(("float32", "bfloat16"), device.step, device.clock) == {"float32": 40.0}
    device = Device(float32=(4.0, 2.4), bfloat16=(3.0, 1.0))
    assert set(time_each(("float32", "bfloat16"), device.step, device.clock)) == {"float32", "bfloat16"}
    assert device.now <= PROBE_SECONDS + 4.0
