"""Rules for operators without a built-in rule: those of other namespaces, and ATen operators not covered."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_fold.errors import ArgumentError, ArgumentTypeError, RewriteError
from lightning_fold.structure.labels import LabelRecorder
from lightning_fold.structure.operators.families import REGISTERED, Registration
from lightning_fold.structure.operators.nodes import family_of, full_name, overload_name
from lightning_fold.structure.rules import RULES, Rule
from lightning_fold.structure.values import Value

Operator = OpOverloadPacket | OpOverload | CustomOpDef
T = TypeVar("T")

# The families whose rules work for any order of arguments, and how many tensors their operators may read.
_LIKE = {"pointwise": None, "identity": 1, "movement": 1, "pooling": 1}


def register_operator(
    operator: Operator, *, like: str | OpOverloadPacket | OpOverload | None = None, rule: Any = None
) -> None:
    """Say how ``operator`` treats channels, so that rewrites can remove them on both sides of it.

    Channels that reach an operator without a rule are kept, and reports name the operator. Registered rules are
    trusted: ``minimize`` still compares the outputs, but ``prune``, ``fold`` and ``factorize`` do not. A second
    registration replaces the first. The operator needs a fake implementation, which ``torch.export`` always requires.

    Args:
        operator: ``torch.ops.mine.gate`` for all overloads, ``torch.ops.mine.gate.default`` for one, or the
            result of ``torch.library.custom_op``.
        like: an ATen operator with the same arguments (``torch.ops.aten.layer_norm``), or one of

            - "pointwise": each element of the result is computed from the elements at the same position in all
              operands, as in an activation or a gate; operands broadcast.
            - "identity": returns its operand in evaluation mode, like dropout.
            - "movement": moves the elements of its operand, independently of their values, like a permutation. It is
              run on channel labels, so it must accept integers.
            - "pooling": means, maxima or interpolations over the positions of an operand (N, C, ...), separately for
              each channel.
        rule: in place of ``like``, a :class:`lightning_fold.structure.rules.Rule`, or an object with its attributes:
            ``labels(run, node, args, kwargs)`` and, optionally, ``constants(node, args, kwargs)`` and ``reads_heads``.

    Raises:
        ArgumentTypeError: ``operator`` is not a torch operator, ``like`` is neither a name nor a torch operator, or
            ``rule`` is not a rule.
        ArgumentError: the operator has a built-in rule, changes its arguments, or has a schema that does not fit
            ``like``; or neither or both of ``like`` and ``rule`` are given.
    """
    found = operator._opoverload._overloadpacket if isinstance(operator, CustomOpDef) else operator
    if not isinstance(found, (OpOverload, OpOverloadPacket)):
        raise ArgumentTypeError(
            f"register_operator({operator!r}): expected an operator of torch, for example torch.ops.mine.gate."
        )
    if (like is None) == (rule is None):
        raise ArgumentError(
            f"register_operator({found}, like={like!r}, rule={rule!r}): expected either like=... or rule=..."
        )
    for overload in _overloads(found):
        _check_operator(overload)
    if rule is not None:
        made = Registration("registered", rule=_checked_rule(found, rule))
    else:
        made = _like_family(found, like) if isinstance(like, str) else _like_operator(found, like)
    if isinstance(found, OpOverload):
        REGISTERED[overload_name(found)] = made
        return
    for overload in _overloads(found):
        REGISTERED.pop(overload_name(overload), None)
    REGISTERED[found._qualified_op_name] = made


def _overloads(operator: OpOverload | OpOverloadPacket) -> list[OpOverload]:
    """The overload itself, or a packet's overloads that change no argument; all of them if each changes one."""
    if isinstance(operator, OpOverload):
        return [operator]
    overloads = [getattr(operator, name) for name in operator.overloads()]
    return [overload for overload in overloads if not overload._schema.is_mutable] or overloads


def _check_operator(overload: OpOverload) -> None:
    if _own_family(overload) in RULES:
        raise ArgumentError(
            f"register_operator({overload}): has the built-in rule {_own_family(overload)!r}; expected an operator "
            "without one."
        )
    if overload._schema.is_mutable:
        raise ArgumentError(
            f"register_operator({overload}): changes its arguments, {overload._schema}; expected an operator that only "
            "returns its result."
        )


def _own_family(overload: OpOverload) -> str:
    """The built-in family of an ATen operator; ``"unknown"`` for other namespaces, whatever their tags say."""
    return family_of(overload, _aten_name(overload)) if overload.namespace == "aten" else "unknown"


def _aten_name(overload: OpOverload) -> str:
    return overload._overloadpacket.__name__.removesuffix("_")


def _like_family(operator: OpOverload | OpOverloadPacket, like: str) -> Registration:
    if like not in _LIKE:
        raise ArgumentError(
            f"register_operator({operator}, like={like!r}): expected an operator of ATen, for example "
            f"torch.ops.aten.relu, or one of {', '.join(map(repr, _LIKE))}."
        )
    for overload in _overloads(operator):
        schema = overload._schema
        tensors = [argument for argument in schema.arguments if "Tensor" in str(argument.type)]
        if (
            not tensors
            or "Tensor" not in str(schema.arguments[0].type)
            or len(tensors) != (_LIKE[like] or len(tensors))
            or _types(schema.returns) != ["Tensor"]
        ):
            operands = "one or more tensors" if _LIKE[like] is None else "one tensor, its first argument,"
            raise ArgumentError(
                f"register_operator({operator}, like={like!r}): has the schema {schema}; expected {operands} and one "
                "tensor as its result. Pass rule=... for others."
            )
    return Registration(like)


def _like_operator(operator: OpOverload | OpOverloadPacket, like: Any) -> Registration:
    if not isinstance(like, (OpOverload, OpOverloadPacket)):
        raise ArgumentTypeError(
            f"register_operator({operator}, like={like!r}): expected an operator of ATen, for example "
            f"torch.ops.aten.relu, or one of {', '.join(map(repr, _LIKE))}."
        )
    known = [overload for overload in _overloads(like) if _own_family(overload) in RULES]
    if not known:
        raise ArgumentError(
            f"register_operator({operator}, like={like}): {like} has no built-in rule; expected an operator of ATen "
            "that has one, for example torch.ops.aten.relu."
        )
    for overload in _overloads(operator):
        if not any(_fits(overload._schema, each._schema) for each in known):
            raise ArgumentError(
                f"register_operator({operator}, like={like}): has the schema {overload._schema}; expected the "
                f"arguments, defaults and results of {' or '.join(str(each._schema) for each in known)}."
            )
    return Registration(_own_family(known[0]), _aten_name(known[0]))


def _fits(schema: Any, like: Any) -> bool:
    """Whether a call by ``schema`` is valid for ``like``; trailing arguments with defaults may be missing."""
    if _types(schema.returns) != _types(like.returns):
        return False
    return all(
        (theirs is not None and _same_argument(ours, theirs)) if ours is not None else theirs.has_default_value()
        for ours, theirs in zip_longest(schema.arguments, like.arguments)
    )


def _same_argument(ours: Any, theirs: Any) -> bool:
    """Whether ``theirs`` accepts every value of ``ours``, and both have the same default."""
    kind, wide = str(ours.type), str(theirs.type)
    taken = kind == wide or wide == f"Optional[{kind}]" or (wide == "number" and kind in ("int", "float"))
    named = ours.kwarg_only == theirs.kwarg_only and (not ours.kwarg_only or ours.name == theirs.name)
    given = not ours.has_default_value() or (theirs.has_default_value() and ours.default_value == theirs.default_value)
    return taken and named and given


def _types(arguments: Any) -> list[str]:
    return [str(argument.type) for argument in arguments]


def _checked_rule(operator: OpOverload | OpOverloadPacket, rule: Any) -> Rule:
    """``rule`` as a :class:`Rule` whose results are checked."""
    labels, known = getattr(rule, "labels", None), getattr(rule, "constants", None)
    if not callable(labels) or (known is not None and not callable(known)):
        raise ArgumentTypeError(
            f"register_operator({operator}, rule={rule!r}): expected a lightning_fold.structure.rules.Rule, or an "
            "object with a function labels(run, node, args, kwargs) and, optionally, constants(node, args, kwargs)."
        )

    def checked(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
        result, shapes = labels(run, node, args, kwargs), [fake.shape for fake in _leaves(node.meta["val"], Tensor)]
        pairs = zip_longest(_leaves(result, Value), shapes)
        if not all(value is not None and shape is not None and _describes(value, shape) for value, shape in pairs):
            raise RewriteError(
                f"The rule of {full_name(node)} gives {result!r}; expected for each result a Value of its shape, here "
                f"{', '.join(str(tuple(shape)) for shape in shapes)}, with a label for each index of a dimension."
            )
        return result

    return Rule(checked, known, bool(getattr(rule, "reads_heads", False)))


def _leaves(values: Any, kind: type[T]) -> Iterator[T]:
    found = tree_leaves(values, is_leaf=lambda leaf: isinstance(leaf, kind))
    return (leaf for leaf in found if isinstance(leaf, kind))


def _describes(value: Value, shape: torch.Size) -> bool:
    return value.shape == shape and all(labels.shape == (shape[dim],) for dim, labels in value.labels.items())
