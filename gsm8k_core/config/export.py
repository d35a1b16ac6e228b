"""Settings of `export`: which model, for which program, and where to."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
import tyro
from pydantic import Field

from gsm8k_core.config.fields import AdapterBase, OptionalPath, SaveDtypeName, Settings, without_none

GGUF_TYPES = ("f32", "f16", "q8_0", "q4_0")


class ExportConfig(Settings):
    """Take a trained model to Ollama, llama.cpp, MLX or vLLM."""

    run: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="[RUN]", help_behavior_hint=without_none),
        Field(description="a run, model or adapter folder, a Hub id, or embedded; an adapter is merged into its base"),
    ] = ""
    base_model: AdapterBase = ""
    to: Annotated[
        Literal["merged", "mlx", "gguf", "ollama"] | None,
        tyro.conf.arg(metavar="merged|mlx|gguf|ollama", help_behavior_hint=without_none),
        Field(
            description="merged: a Hugging Face folder for transformers, vLLM and mlx-lm; mlx: by mlx-lm's own "
            "conversion; gguf: a file for llama.cpp; ollama: that file with a Modelfile, and ollama create is run "
            "where it is installed"
        ),
    ] = None
    bits: Annotated[
        Literal[4, 8] | None,
        tyro.conf.arg(metavar="4|8", help_behavior_hint=without_none),
        Field(description="mlx: quantise the weights; default: they stay as they are"),
    ] = None
    type: Annotated[
        Literal["f32", "f16", "q8_0", "q4_0"] | None,
        tyro.conf.arg(metavar="f16|q8_0|q4_0|f32", help_behavior_hint=without_none),
        Field(description="gguf and ollama: how the weights are written; default f16"),
    ] = None
    save_dtype: Annotated[
        SaveDtypeName,
        Field(description="merged and mlx: the weights' dtype; auto: as the run saves it, the base's own"),
    ] = "auto"
    output_dir: Annotated[
        OptionalPath, Field(description="the export's folder, new; default RUN/export/<what>, or <name>-<what> here")
    ] = None
    name: Annotated[
        str,
        tyro.conf.arg(help_behavior_hint=without_none),
        Field(max_length=96, description="what the other program calls it; default: the run's name"),
    ] = ""
    push: Annotated[
        str,
        tyro.conf.arg(metavar="OWNER/NAME", help_behavior_hint=without_none),
        Field(description="upload the export to this repository of the Hub, made private where it is new"),
    ] = ""

    @pydantic.model_validator(mode="after")
    def _fits_its_format(self) -> Self:
        wanted = {"bits": ("mlx",), "type": ("gguf", "ollama"), "save_dtype": ("merged", "mlx")}
        for name, formats in wanted.items():
            given = getattr(self, name) not in (None, "auto")
            if given and self.to is not None and self.to not in formats:
                raise ValueError(f"--{name.replace('_', '-')} is for --to {' and '.join(formats)}, not for {self.to}")
        return self

    @property
    def file_type(self) -> str:
        """How a GGUF's weights are written."""
        return self.type or "f16"

    @property
    def what(self) -> str:
        """The format with what tells it from others of the same model: gguf-q8_0, mlx-4bit, merged-float32."""
        detail = {"mlx": f"{self.bits}bit" if self.bits else "", "merged": ""}.get(str(self.to), self.file_type)
        dtype = "" if self.save_dtype == "auto" else self.save_dtype
        return "-".join(filter(None, (str(self.to), detail, dtype)))
