"""Build a network from a name and plain arguments."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, get_type_hints

from torch import nn

from lightning_fold.errors import ArgumentError, ArgumentTypeError

_TIMM = "timm/"


def build_network(network: str, network_args: Mapping[str, Any]) -> nn.Module:
    """Build a network.

    Args:
        network: Dotted path of an ``nn.Module`` subclass, or of a function whose return annotation is one
            ("lightning_fold.models.MLP", "torchvision.models.resnet18"), or a timm model name ("resnet18" or
            "timm/resnet18"). Nothing else is called, because the name may come from a file.
        network_args: Keyword arguments of that class or function; for timm, those of ``timm.create_model``.

    Returns:
        The new module, in training mode.

    Raises:
        ArgumentError: There is no such module, class or model; the message lists the closest names.
        ArgumentTypeError: An argument is unknown or missing (the message lists the accepted ones), or the result is
            not an ``nn.Module``.
    """
    build = checked_builder(network, network_args)
    try:
        module = build(**network_args)
    except TypeError as error:  # an argument passed on through **kwargs and rejected further inside
        raise ArgumentTypeError(f"{_call(network, network_args)}: {error}. Check network_args.") from error
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"{_call(network, network_args)}: expected an nn.Module, found {type(module).__name__}")
    return module


def checked_builder(network: str, network_args: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the callable behind a name after checking its signature against the arguments; it is not called.

    Args:
        network: Dotted path or timm model name.
        network_args: Its keyword arguments.

    Raises:
        ArgumentError: There is no such module, class or model.
        ArgumentTypeError: An argument is unknown or missing.
    """
    build = find_builder(network)
    try:
        inspect.signature(build).bind(**network_args)
    except TypeError as error:
        accepted = ", ".join(accepted_arguments(build))
        raise ArgumentTypeError(f"{_call(network, network_args)}: {error}. network_args accepts {accepted}") from error
    return build


def find_builder(network: str) -> Callable[..., Any]:
    """Return the callable behind a name (see :func:`build_network`).

    Args:
        network: Dotted path or timm model name.

    Raises:
        ArgumentError: There is no such module, class or model.
    """
    if _is_timm(network):
        return _timm_builder(network)
    path, _, name = network.rpartition(".")
    return _import_builder(network, path, name)


def without_pretraining(network: str, network_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that build the same network without pretrained weights, so that timm downloads nothing.

    Args:
        network: Dotted path or timm model name.
        network_args: Its arguments.
    """
    arguments = dict(network_args)
    return arguments | {"pretrained": False} if arguments.get("pretrained") and _is_timm(network) else arguments


def accepted_arguments(build: Callable[..., Any]) -> list[str]:
    """Return the names of the keyword arguments that a callable lists in its signature, without ``**kwargs``."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, p in inspect.signature(build).parameters.items() if p.kind not in variadic]


def _is_timm(network: str) -> bool:
    package, dot, _ = network.partition(".")
    return network.startswith(_TIMM) or not dot or find_spec(package) is None


def _import_builder(network: str, path: str, name: str) -> Callable[..., Any]:
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ArgumentError(
            f"network={network!r}: cannot import {path!r} ({error}). Give the full path of a class"
        ) from error
    build = getattr(module, name, None)
    if build is None:
        raise ArgumentError(f"network={network!r}: {path!r} has no {name!r}.{_suggest(name, vars(module))}")
    made = build if inspect.isclass(build) else _return_type(build)
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise ArgumentError(
            f"network={network!r}: expected an nn.Module class, or a function annotated to return one "
            f"(def build(...) -> nn.Module), found {build!r}"
        )
    return build


def _return_type(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (TypeError, NameError):  # not a function, or an annotation that cannot be resolved
        return None


def _timm_builder(network: str) -> Callable[..., Any]:
    import timm  # the import takes seconds, and only timm networks need it

    name = network.removeprefix(_TIMM)
    if not timm.is_model(name):
        raise ArgumentError(
            f"network={network!r}: there is no importable class and no timm model of this name."
            f"{_suggest(name, timm.list_models())} Give a dotted class path such as 'lightning_fold.models.MLP', "
            "or a name from timm.list_models()"
        )

    def create(num_classes: int = 1000, **arguments: Any) -> nn.Module:
        return timm.create_model(name, num_classes=num_classes, **arguments)

    return create


def _call(network: str, network_args: Mapping[str, Any]) -> str:
    return f"build_network({network!r}, {dict(network_args)!r})"


def _suggest(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, list(names), n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
