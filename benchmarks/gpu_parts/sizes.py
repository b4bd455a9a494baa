"""How the rewrites and callbacks are asked for a size: the one place that knows the arguments' names."""

from typing import Any, Literal

Unit = Literal["parameters", "flops", "channels"]


def size(keep: float, of: Unit = "parameters") -> dict[str, Any]:
    """Arguments of a rewrite, or of its callback, that keep a share in (0, 1] of the parameters, FLOPs or channels."""
    return {"keep": keep, "of": of}
