"""Names of classes in files: the public path, so that a private module may move without breaking what was written."""

import sys
from operator import attrgetter


def class_path(kind: type) -> str:
    """The shortest dotted path that leads to ``kind``: ``torch.nn.Linear``, not ``torch.nn.modules.linear.Linear``."""
    packages = kind.__module__.split(".")
    prefixes = (".".join(packages[:count]) for count in range(1, len(packages)))
    paths = (f"{prefix}.{kind.__qualname__}" for prefix in prefixes)
    return next((path for path in paths if _found(path) is kind), f"{kind.__module__}.{kind.__qualname__}")


def names_class(path: str, kind: type) -> bool:
    """Whether ``path`` leads to ``kind``, by whatever name. Nothing is imported for it: files may hold any path."""
    return path == class_path(kind) or _found(path) is kind


def _found(path: str) -> object:
    """What the dotted ``path`` leads to in the modules that are imported; ``None`` if that is nothing."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:count]))
        if module is not None:
            try:
                return attrgetter(".".join(parts[count:]))(module)
            except AttributeError:
                return None
    return None
