"""Constructor arguments as plain values, as checkpoints store them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning_fold.class_paths import class_path
from lightning_fold.regularizers import Smoothness


def plain_arguments(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a class's arguments into plain values that Lightning stores in checkpoints and LightningCLI reads back.

    Args:
        cls: Class to construct.
        arguments: Values by name. A class, or a ``functools.partial`` of one with plain keywords, becomes
            ``{"class_path": ..., "init_args": ...}``, and so do penalties in a list.

    Returns:
        Plain values by name, without arguments that have no plain form, plus the two keys that tell Lightning to
        rebuild classes from their paths.
    """
    described = {name: _described(value) for name, value in arguments.items()}
    plain = {name: value for name, value in described.items() if is_plain(value)}
    return {**plain, "_class_path": class_path(cls), "_instantiator": "lightning.pytorch.cli.instantiate_module"}


def is_plain(value: Any) -> bool:
    """Whether a value consists only of None, booleans, numbers, strings, lists, tuples and string-keyed mappings."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _described(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if isinstance(value, Smoothness):
        return {"class_path": class_path(type(value)), "init_args": value.arguments()}
    return _describe_class(value) or value


def _describe_class(build: Any) -> dict[str, Any] | None:
    """Path and keywords of a class or a partial of one; jsonargparse's partials hold the class as an argument."""
    parts = (build.func, *build.args) if isinstance(build, partial) else (build,)
    cls = next((part for part in parts if isinstance(part, type)), None)
    keywords = build.keywords if isinstance(build, partial) else {}
    return None if cls is None else {"class_path": class_path(cls), "init_args": dict(keywords)}
