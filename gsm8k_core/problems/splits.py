"""Which files of a folder, or of a repository on the Hub, hold which split of which configuration.

train.jsonl, test.json.gz, train.parquet        beside each other
main/train-00000-of-00001.parquet               openai/gsm8k, and a clone of it
data/train-00000-of-00005.parquet               most others; also train/0000.parquet
grade_school_math/data/train_socratic.jsonl     openai/grade-school-math
MetaMathQA-395K.json                            one file that names no split: all of it is train
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatch

SPLITS = ("train", "test")
FORMATS = ("jsonl", "parquet", "json", "ndjson", "jsonl.gz", "json.gz")
DEFAULT_CONFIG = "main"
ORIGINAL = "grade_school_math/data/"
# No rows, though their names end as rows' do.
OTHERS = ("dataset_info*.json", "dataset_dict.json", "state.json", "config.json", "package*.json", ".*")


def data_files(names: Iterable[str], config: str, splits: Sequence[str]) -> dict[str, list[str]]:
    """Each split's files, in order; an empty list where there are none."""
    rows = sorted(name for name in names if _is_rows(name))
    found = {split: _of_split(rows, config, split) for split in splits}
    if config == DEFAULT_CONFIG and not any(found.values()):
        if len(others := configurations(rows)) == 1:
            return {split: _of_split(rows, others[0], split) for split in splits}
        if len(rows) == 1 and "train" in splits and not _names_a_split(rows[0]):
            return {split: rows if split == "train" else [] for split in splits}
    return found


def configurations(names: Iterable[str]) -> list[str]:
    """The folders that hold a split, by name."""
    rows = [name for name in names if _is_rows(name)]
    tops = sorted({name.partition("/")[0] for name in rows if "/" in name} - {*SPLITS, "data"})
    return [top for top in tops if any(_in_folder(rows, f"{top}/", split) for split in SPLITS)]


def listed(names: Collection[str], most: int = 8) -> str:
    """The first ones, in a line."""
    shown = sorted(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return f"{', '.join(shown[:most])}{more}" or "nothing"


def _is_rows(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.endswith(tuple(f".{ending}" for ending in FORMATS)) and not any(fnmatch(last, each) for each in OTHERS)


def _names_a_split(name: str) -> bool:
    return re.search(r"(^|[^a-z])(test|validation|valid|val|dev|eval)([^a-z]|$)", name.lower()) is not None


def _of_split(rows: Sequence[str], config: str, split: str) -> list[str]:
    below = (f"{config}/", "data/", f"data/{config}/")
    for folder in ("", *below) if config == DEFAULT_CONFIG else (*below, ""):
        if found := _in_folder(rows, folder, split):
            return found
    return _in_folder(rows, ORIGINAL, split if config == DEFAULT_CONFIG else f"{split}_{config}")


def _in_folder(rows: Sequence[str], folder: str, split: str) -> list[str]:
    """Those of one format: the same rows may lie there in two."""
    for ending in FORMATS:
        pattern = rf"{re.escape(folder + split)}(-\d+-of-\d+|/[^/]+)?\.{re.escape(ending)}"
        if found := [name for name in rows if re.fullmatch(pattern, name)]:
            return found
    return []
