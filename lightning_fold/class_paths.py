"""Objects by a short name or by the path of their class or function, with arguments: ``my.module.Gradient(power=2)``.

Everything that can be extended is found this way, so classes from outside have the same power as built-in ones: a
built-in name is only short for a path.
"""

import ast
import inspect
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from lightning_fold.errors import ArgumentError


def load(call: str, argument: str, text: str, names: Mapping[str, str]) -> Any:
    """The object that ``text`` names: an instance of a class, or a function with the arguments bound.

    Args:
        call: the function or class that was called, for errors.
        argument: its argument that holds ``text``, for errors.
        text: a key of ``names`` or the dotted path of a class or function; either with keyword arguments in
            parentheses, which are Python literals.
        names: short names and what each of them is short for, written like ``text``.

    Raises:
        ArgumentError: the name is unknown, or there is no such class or function.
        TypeError: a class is built without an argument that it needs, or with one that it does not have.
    """
    name, arguments = _parsed(call, argument, text)
    path, preset = _parsed(call, argument, names.get(name, name))
    if "." not in path:
        known = ", ".join(map(repr, names))
        raise ArgumentError(
            f"{call}({argument}={text!r}): expected one of {known}, or the path of a class or function, such as "
            "my_package.my_module.MyClass or, with arguments, 'my_package.my_module.MyClass(power=2)'."
        )
    found, arguments = _imported(call, argument, path), preset | arguments
    if inspect.isclass(found):
        return found(**arguments)
    return partial(found, **arguments) if arguments else found


def _parsed(call: str, argument: str, text: str) -> tuple[str, dict[str, Any]]:
    """``"name(key=1)"`` as ``("name", {"key": 1})``."""
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        node = ast.parse(f"f({rest}", mode="eval").body
        if isinstance(node, ast.Call) and not node.args and all(keyword.arg for keyword in node.keywords):
            return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError):
        pass
    raise ArgumentError(
        f"{call}({argument}={text!r}): expected arguments by name with plain values, such as '{name}(power=2)'."
    )


def _imported(call: str, argument: str, path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(
            f"{call}({argument}={path!r}): {error}; expected the path of a class or function that Python can import."
        ) from error
