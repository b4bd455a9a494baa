"""Turns an error message of the configuration parser into one readable line."""

import inspect
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches

import lightning
import torch
from lightning.pytorch.loggers import Logger

_BASES = (
    lightning.LightningModule,
    lightning.LightningDataModule,
    lightning.Callback,
    Logger,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
)
_NOISE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:|Given value type:|Given value: (Namespace|NestedArg|[\[{])"
    r"|Expected a <class 'NoneType'>|Expected a path but|Not a valid subclass of|Subclass types expect"
    r"|a class path \(|a dict with"
)
_REPLACEMENTS = (
    (re.compile(r"Problem with given class_path '[^']*': "), ""),
    (re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>"), r"\1"),
    (re.compile(r'Parser key "([^"]*)": Parser key "([^"]*)":'), r"key '\1.\2':"),
    (re.compile(r'Parser key "([^"]*)":'), r"key '\1':"),
    (re.compile(r"\. Got value: Namespace\(.*"), ""),
    (re.compile(r"\.? (?:Given|Got) value: "), ", found "),
    (re.compile(r"Expected a dot import path string: (\w+)(, found \1)?"), r"no known class is called '\1'"),
    (re.compile(r"Expected a typing\.Literal\[(.*?)\]"), r"expected one of \1"),
    (re.compile(r"Expected a "), "expected "),
    (re.compile(r"Type typing\.Callable\[.*\] expects a function or a callable class: "), ""),
)


def summarise(message: str) -> str:
    """Shorten an error message of the parser to one line; for an unknown name, add the closest valid one.

    Args:
        message: Message of jsonargparse, often many lines long.

    Returns:
        One line.
    """
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    text = " ".join(line for line in dict.fromkeys(lines) if line and not _NOISE.match(line))  # one per union member
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"key '([\w.]+)': expected list, found ([^{}]+)$", _with_list, text)
    return text + _suggestion(text)


def _with_list(found: re.Match[str]) -> str:
    """Show how to write a list; a pattern that begins with a star needs quotes in YAML."""
    key, value = found.groups()
    items = (item.strip() for item in value.strip("[]").split(","))
    written = ",".join(f"'{item}'" if item.startswith("*") else item for item in items)
    return f"key '{key}': expected a list, found {value}: --{key} \"[{written}]\""


def _suggestion(text: str) -> str:
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        wrong, names = found[2], set(vars(sys.modules[found[1]]))
    elif found := re.search(r"no known class is called '(\w+)'", text):
        wrong, names = found[1], {cls.__name__ for cls in _known_classes()}
    elif found := re.search(r"[oO]ption '([\w.]+)'", text):
        names = set(_known_keys())
        wrong = next((part for part in found[1].split(".") if part not in names), "")
    else:
        return ""
    close = get_close_matches(wrong, names, n=2)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _known_keys() -> Iterator[str]:
    """The keys that a configuration can have: sections, arguments of the trainer and of known classes."""
    yield from ("model", "data", "trainer", "seed_everything", "ckpt_path", "class_path", "init_args", "network_args")
    for cls in (lightning.Trainer, *_known_classes()):
        yield from inspect.signature(cls).parameters


def _known_classes() -> Iterator[type]:
    for base in _BASES:
        yield from _subclasses(base)


def _subclasses(cls: type) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
