"""MLX's decoding loop: rows that come and go beside each other keep their own texts, on every path through it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.parity.tiny import END_ID
from gsm8k_core.types import Completion, DivergedError, Example, Sampling
from tests import tiny

pytestmark = pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")

SHARED = (4, 9, 14, 19, 24)


def prompts_of(examples: list[Example]) -> list[tuple[int, ...]]:
    """22 prompts of 6 to 14 tokens, of which all share the first five."""
    return [SHARED + example.tokens[: 1 + index % 9] for index, example in enumerate(examples)]


def texts(backend: Any, prompts: list[tuple[int, ...]], size: int, max_new_tokens: int = 40) -> dict[int, Completion]:
    return dict(backend.generate(prompts, Sampling(max_new_tokens, size)))


def quantized(folder: Path) -> Path:
    from backends.mlx.adapter import quantize_folder

    quantize_folder(tiny.make(folder / "whole", intermediate_size=128), folder / "small")
    return folder / "small"


def untied(folder: Path) -> Path:
    made = tiny.make(folder / "untied", tie_word_embeddings=False)
    tensors = load_file(made / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    save_file(tensors, str(made / "model.safetensors"), metadata={"format": "pt"})
    return made


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "plain"])
def test_both_kinds_of_blocks_write_the_same_texts(
    tiny_model: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch, is_fast: bool
) -> None:
    """Those that a GPU runs, and those of the CPU: against a model that reads the whole text for each token."""
    import mlx.core as mx

    from backends.mlx import fast_exp

    backend, prompts = backends.open("mlx", tiny_model, "cpu", "float32"), prompts_of(examples)
    assert fast_exp.has_fast_body(backend._model)
    if not is_fast:
        monkeypatch.setattr(fast_exp, "has_fast_body", lambda model: False)
    found = texts(backend, prompts, 5, 12)
    for index, prompt in enumerate(prompts):
        row = list(prompt)
        for token in found[index].tokens:
            assert token == mx.argmax(backend._model(mx.array([row]))[0, -1]).item()
            row.append(token)


def test_fast_blocks_compute_what_mlx_lms_do(tiny_model: Path) -> None:
    import mlx.core as mx

    from backends.mlx import fast_exp
    from backends.mlx.cache import PromptLayer, causal

    model = backends.open("mlx", tiny_model, "cpu", "float32")._model
    tokens = mx.arange(4, 34)[None]

    def error(mask: mx.array) -> float:
        layers = [PromptLayer(None, mask) for _ in model.layers]
        return float(mx.abs(fast_exp.fast_body(model)(tokens, layers) - model.model(tokens)).max())

    # Measured: 3.1e-6 at most. The control: one token more is seen.
    assert error(causal(30, 0)) < 1e-5
    assert error(mx.roll(causal(30, 0), 1, axis=0)) > 1e-2


def test_exp_is_exact_and_nan_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    from backends.mlx import fast_exp

    values = np.linspace(-80, 80, 100_001, dtype=np.float32)
    exact = np.exp(values.astype(np.float64))

    def error(found: mx.array) -> float:
        return float(np.abs(np.array(found) / exact - 1).max())

    # Measured: 9.1e-8. The control: a polynomial that ends three terms earlier.
    assert error(fast_exp.compiled_exp(mx.array(values))) < 4e-7
    monkeypatch.setattr(fast_exp, "_POLYNOMIAL", fast_exp._POLYNOMIAL[3:])
    assert error(fast_exp.exp(mx.array(values))) > 4e-6
    assert np.isnan(np.array(fast_exp.compiled_exp(mx.array([np.nan])))).all()
    assert fast_exp.compiled_exp(mx.array([-np.inf])).item() < 1e-37


def test_control_a_wrong_mask_is_seen(qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row sees every position, and so what an earlier row left in its place."""
    from backends.mlx import cache

    backend, prompts = backends.open("mlx", qwen2, "cpu", "float32"), prompts_of(examples)
    right, begin = texts(backend, prompts, 3), cache.Slots.begin_step

    def wrong(self: Any, num_rows: int, dtype: Any) -> None:
        begin(self, num_rows, dtype)
        for layer in self.layers:
            layer.mask = None

    monkeypatch.setattr(cache.Slots, "begin_step", wrong)
    assert texts(backend, prompts, 3) != right


def test_control_a_wrong_prefix_is_seen(qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the common beginning are zero in the places."""
    from backends.mlx import cache

    backend, prompts = backends.open("mlx", qwen2, "cpu", "float32"), prompts_of(examples)
    right, init = texts(backend, prompts, 3), cache.Slot.__init__

    def wrong(self: Any, num_places: int, prefix: Any) -> None:
        init(self, num_places, prefix)
        self.keys = self.keys * 0

    monkeypatch.setattr(cache.Slot, "__init__", wrong)
    assert texts(backend, prompts, 3) != right


@pytest.mark.parametrize("make", [quantized, untied])
def test_four_bit_weights_and_untied_heads(
    make: Callable[[Path], Path], tmp_path: Path, examples: list[Example]
) -> None:
    backend, prompts = backends.open("mlx", make(tmp_path), "cpu", "float32"), prompts_of(examples)
    assert texts(backend, prompts, 4, 12) == texts(backend, prompts, 1, 12)


def test_bfloat16_is_decoded_by_mlx_lms_blocks(qwen2: Path, examples: list[Example]) -> None:
    from backends.mlx import fast_exp

    backend, prompts = backends.open("mlx", qwen2, "cpu", "bfloat16"), prompts_of(examples)
    assert not fast_exp.has_fast_body(backend._model)
    found = texts(backend, prompts, 4, 12)
    assert sorted(found) == list(range(22))
    # Its first tokens are those of whole prompts in one piece, where no near tie lies between.
    whole = texts(backends.open("mlx", qwen2, "cpu", "float32"), prompts, 4, 12)
    assert sum(found[index].tokens[:1] == whole[index].tokens[:1] for index in found) >= 18


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_no_token_too_many(qwen2: Path, examples: list[Example], limit: int) -> None:
    """Though the next step is launched before the host looks."""
    prompts, told = prompts_of(examples), []
    backend = backends.open("mlx", qwen2, "cpu", "float32")
    found = dict(backend.generate(prompts, Sampling(limit, 4), lambda index, token: told.append((index, token))))
    longer = texts(backend, prompts, 4, limit + 5)
    for index, completion in found.items():
        assert completion.tokens == longer[index].tokens[:limit]
        assert (completion.finish_reason == "length") == (len(completion.tokens) == limit)
        assert [token for place, token in told if place == index] == list(completion.tokens)


def test_damage_that_only_a_later_row_meets_is_named(tmp_path: Path, examples: list[Example]) -> None:
    """A token whose embedding is NaN stands in one prompt, which has to wait for its place."""
    folder = tiny.make(tmp_path / "nan", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][41] = np.nan
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    prompts = [(5, 6, 7, 8), (5, 9, 10), (5, 41)]
    stream = backends.open("mlx", folder, "cpu", "float32").generate(prompts, Sampling(6, 1))
    assert next(stream)[0] == 0
    with pytest.raises(DivergedError, match="not finite"):
        list(stream)


def test_what_is_thrown_away_behind_an_end_token_ends_nothing(tmp_path: Path) -> None:
    """A model that writes the end token alone, whose embedding is NaN: so is the step behind it."""
    folder = tiny.make(tmp_path / "ends", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 100.0
    tensors["model.embed_tokens.weight"][END_ID] = np.nan
    tensors["lm_head.weight"] = np.zeros_like(tensors["model.embed_tokens.weight"])
    tensors["lm_head.weight"][END_ID, 0] = 1.0
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    backend = backends.open("mlx", folder, "cpu", "float32")
    found = dict(backend.generate([(5, 6, 7), (5, 9, 10, 11)], Sampling(6, 2)))
    assert [(found[row].tokens, found[row].finish_reason) for row in (0, 1)] == [((), "stop")] * 2
    with pytest.raises(DivergedError, match="not finite"):  # the control: where it is read, it is an error
        list(backend.generate([(5, END_ID)], Sampling(6, 1)))


# --- what a step asks of the host, and of the device ------------------------------------------------------------------


class _Told:
    """Tokens that were asked of the device: they may be read, once, and nothing else may be done with them."""

    def __init__(self, tokens_B: Any) -> None:
        self._tokens_B, self.dtype, self.reads = tokens_B, tokens_B.dtype, 0

    def tolist(self) -> Any:
        self.reads += 1
        return self._tokens_B.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_host_reads_once_a_step_what_was_asked_before_the_next(
    qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch, dtype: str, temperature: float
) -> None:
    """An operation on what was picked would stand behind the next step, and the host would wait for that."""
    import mlx.core as mx

    from backends.mlx import generate

    told: list[_Told] = []
    land = generate._Decoder._land

    def watched(self: Any, picks: Any) -> Any:
        arrays = {name: _Told(value) for name, value in picks._asdict().items() if isinstance(value, mx.array)}
        told.extend(arrays.values())
        yield from land(self, picks._replace(**arrays))

    monkeypatch.setattr(generate._Decoder, "_land", watched)
    backend = backends.open("mlx", qwen2, "cpu", dtype)
    found = dict(backend.generate(prompts_of(examples), Sampling(6, 4, temperature)))
    assert len(found) == 22
    assert {(one.dtype, one.reads) for one in told} == {(mx.int32, 1)}
    monkeypatch.setattr(generate._Decoder, "_land", land)
    assert dict(backend.generate(prompts_of(examples), Sampling(6, 4, temperature))) == found


def test_prompts_are_read_when_enough_places_are_free(
    qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 places, four: fewer readings of prompts, and the same texts, whatever is forced or shared."""
    from backends.mlx import generate
    from backends.torch.seats import GROUP

    assert generate.REFILL == GROUP
    backend, read, sizes = backends.open("mlx", qwen2, "cpu", "float32"), generate._Decoder._read_some, list[int]()
    prompts = [(*prompt, last) for last in range(4, 14) for prompt in prompts_of(examples)] + prompts_of(examples) * 2

    def force(written: Any) -> tuple[int, ...]:
        return (7, 8) if len(written) % 5 == 2 else ()

    def counted(self: Any, rows: Any) -> Any:
        reading = read(self, rows)
        sizes.append(len(reading.prompts))
        return reading

    def answers(forced: bool) -> tuple[dict[int, Completion], int]:
        sizes.clear()
        sampling = Sampling(24, 64, temperature=1.0, force=force if forced else None)
        return dict(backend.generate(prompts, sampling)), len(sizes)

    monkeypatch.setattr(generate._Decoder, "_read_some", counted)
    for forced in (False, True):
        found, few = answers(forced)
        with monkeypatch.context() as patch:  # the control: whoever leaves makes room for one prompt
            patch.setattr(generate, "REFILL", 65)
            alone, many = answers(forced)
        assert found == alone
        print(few, many)
        assert few < 0.8 * many, (few, many)


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "plain"])
def test_a_mask_is_written_out_once_a_step_and_only_where_something_is_hidden(
    qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch, is_fast: bool
) -> None:
    """Metal's fused attention copies, in each layer, a mask whose heads do not lie in rows of their own."""
    from backends.mlx import cache, fast_exp

    seen: list[Any] = []
    begin = cache.Slots.begin_step

    def watched(self: Any, num_rows: int, dtype: Any) -> None:
        begin(self, num_rows, dtype)
        assert len({id(layer.mask) for layer in self.layers}) == 1
        seen.append(self.layers[0].mask)

    if not is_fast:
        monkeypatch.setattr(fast_exp, "has_fast_body", lambda model: False)
    monkeypatch.setattr(cache.Slots, "begin_step", watched)
    backend, prompts = backends.open("mlx", qwen2, "cpu", "float32"), prompts_of(examples)
    heads = 1 if is_fast else backend._model.args.num_attention_heads
    assert is_fast or heads > 1
    unlike = texts(backend, prompts, 4, 6)
    masks = [mask for mask in seen if mask is not None]
    assert len(masks) > 0.8 * len(seen)
    for mask in masks:
        rows, *_, positions = mask.shape
        assert mask.shape == (rows, heads, 1, positions)
        assert memoryview(mask).strides[1] == mask.itemsize * positions or heads == 1  # nothing is spread
    seen.clear()
    alone = texts(backend, prompts, 1, 6)  # one row sees all that is there
    assert seen
    assert all(mask is None for mask in seen)
    assert alone == unlike
