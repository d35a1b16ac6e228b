"""A YAML file of settings, read with care: plain values by key, no aliases, no tags of other kinds, a bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gsm8k_core.files import advice, read_plain
from gsm8k_core.types import DataError, UsageError

MAX_BYTES = 1 << 16  # a file of every setting has a hundredth
MAX_BITS = 256  # of a whole number: no setting takes a longer one, and Python will not print thousands of digits
DATES = "tag:yaml.org,2002:timestamp"


class _PlainLoader(yaml.SafeLoader):
    """Texts, numbers, lists and objects: nothing else is a setting. A date stays the text that it is."""

    # A copy without the dates: SafeLoader's own belongs to every user of yaml in this process.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in kinds if tag != DATES]
        for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # ten of them, one in another, make a billion values
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"there is an alias, *{event.anchor}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError, ArithmeticError):  # `!!int abc`: yaml's own readers
            raise self._no_value(node) from None
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise self._no_value(node)
        return value

    def _no_value(self, node: Any) -> yaml.constructor.ConstructorError:
        kind = node.tag.rpartition(":")[2]
        return yaml.constructor.ConstructorError(None, None, f"that is not read as {kind}", node.start_mark)


def read_yaml(path: Path) -> dict[object, Any]:
    """The keys and values of `--config PATH`; an empty file has none. Raises UsageError for any other content."""
    try:
        text = read_plain(path, MAX_BYTES).decode()
        loader = _PlainLoader(text)
        values = loader.get_single_data()
    except OSError as error:
        do = advice(error, "give a YAML file")
        raise UsageError(f"--config {path} cannot be read ({error.strerror}); {do}") from error
    except DataError as error:
        raise UsageError(f"--config {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--config {path} is not UTF-8 text; save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(
            f"--config {path} is not YAML{_reason(error)}; write lines such as max_samples: 500"
        ) from error
    if values is not None and not isinstance(values, dict):
        raise UsageError(f"--config {path} must hold keys and values, such as max_samples: 500")
    return values or {}


def _reason(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f" (line {mark.line + 1}: {problem})" if mark and problem else ""
