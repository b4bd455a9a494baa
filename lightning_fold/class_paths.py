"""Convert text such as ``my.module.Gradient(power=2)`` to objects, and classes to their dotted paths.

All extension points use these paths, so user classes have the same rights as built-in ones: a built-in name is only
an abbreviation of a path. Files store the public path of each class, so moving a private module does not break them.
"""

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any

from lightning_fold.errors import ArgumentError


def resolve(call: str, argument: str, text: str, names: Mapping[str, str]) -> Any:
    """The object that ``text`` names: an instance of a class, or a function with its arguments bound.

    Args:
        call: the function or class that was called, for error messages.
        argument: its argument that contains ``text``, for error messages.
        text: a key of ``names`` or the dotted path of a class or function. Either may have keyword arguments in
            parentheses, which must be Python literals.
        names: short names and the text that each abbreviates, in the same form as ``text``.

    Raises:
        ArgumentError: the name is unknown, or there is no such class or function.
        TypeError: a required argument of the class is missing, or the class has no such argument.
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


def class_path(kind: type) -> str:
    """The shortest dotted path of ``kind``: ``torch.nn.Linear``, not ``torch.nn.modules.linear.Linear``."""
    packages = kind.__module__.split(".")
    prefixes = (".".join(packages[:count]) for count in range(1, len(packages)))
    paths = (f"{prefix}.{kind.__qualname__}" for prefix in prefixes)
    return next((path for path in paths if _found(path) is kind), f"{kind.__module__}.{kind.__qualname__}")


def names_class(path: str, kind: type) -> bool:
    """Whether ``path`` is one of the names of ``kind``. It imports nothing, because files may contain any path."""
    return path == class_path(kind) or _found(path) is kind


def _found(path: str) -> object:
    """The object at the dotted ``path`` in the modules imported so far; ``None`` if there is none."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:count]))
        if module is not None:
            try:
                return attrgetter(".".join(parts[count:]))(module)
            except AttributeError:
                return None
    return None
