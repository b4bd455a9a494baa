"""Which family each operator of ATen belongs to, and the operators that were registered: plain data.

Data-movement operators run unchanged on symbolic values, so they are only listed and need no rule of their own.
Operators that compute each output element from one element of each input carry ATen's own ``pointwise`` tag.
"""

from dataclasses import dataclass
from typing import Any

_MOVEMENT = {
    "_unsafe_view", "adjoint", "alias", "chunk", "clone", "contiguous", "detach", "expand",
    "expand_as", "flatten", "lift_fresh_copy", "mH", "mT", "moveaxis", "movedim", "numpy_T", "permute",
    "pixel_unshuffle", "ravel", "repeat", "repeat_interleave", "reshape", "reshape_as", "split",
    "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "tile", "transpose", "unbind",
    "unflatten", "unsafe_chunk", "unsafe_split", "unsqueeze", "view", "view_as",
}  # fmt: skip
# Data movement at positions named in the network's code: nothing can be removed along these dimensions.
_POSITIONS = {"flip", "index", "index_select", "narrow", "roll", "select", "slice", "unfold"}
# Element-wise operators without ATen's tag.
_POINTWISE = {"hardswish", "log_sigmoid", "rsub", "zeros_like", "ones_like", "full_like"}  # fmt: skip
_IDENTITY = {"dropout", "feature_dropout", "alpha_dropout", "_assert_tensor_metadata", "lift_fresh"}
NEW = {"new_empty", "new_full", "new_ones", "new_zeros"}
_POOLING = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
    "max_pool2d_with_indices", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact3d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
}  # fmt: skip
_REDUCTION = {"mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm"}

# Names of the placeholder functions for norms that a module writes out.
WRITTEN_NORMS = ("written_layer_norm", "written_rms_norm")

FAMILIES: dict[str, str] = {
    **dict.fromkeys(_MOVEMENT, "movement"),
    **dict.fromkeys(_IDENTITY, "identity"),
    **dict.fromkeys(_POOLING, "pooling"),
    **dict.fromkeys(_REDUCTION, "reduction"),
    **dict.fromkeys(_POSITIONS, "positions"),
    **dict.fromkeys(_POINTWISE, "pointwise"),
    **dict.fromkeys(("to", "_to_copy", "type_as"), "cast"),
    **dict.fromkeys(NEW, "new"),
    **dict.fromkeys(("pad", "constant_pad_nd"), "pad"),
    **dict.fromkeys(("cat", "concat"), "cat"),
    "stack": "stack",
    **dict.fromkeys(("pixel_shuffle", "channel_shuffle", "native_channel_shuffle"), "shuffle"),
    **dict.fromkeys(("im2col", "col2im"), "patches"),
    "bilinear": "bilinear",
    "linear": "contraction",
    "conv1d": "contraction",
    "conv2d": "contraction",
    "conv3d": "contraction",
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "contraction"),
    **dict.fromkeys(("matmul", "mm", "addmm", "bmm"), "matmul"),
    "scaled_dot_product_attention": "attention",
    "batch_norm": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "instance_norm": "instance_norm",
    "group_norm": "group_norm",
    **dict.fromkeys(("layer_norm", "rms_norm", *WRITTEN_NORMS), "layer_norm"),
    "channel_share": "global_response_norm",
    "embedding": "embedding",
    "softmax": "softmax",
    "log_softmax": "softmax",
    "mul": "product",
    "prelu": "prelu",
    "glu": "glu",
}


@dataclass(frozen=True)
class Registration:
    """The registration of an operator without a built-in rule.

    Attributes:
        family: the family whose rule applies.
        name: the ATen operator that it behaves like; empty if it was registered like a whole family.
        rule: its own rule, in place of a family's.
    """

    family: str
    name: str = ""
    rule: Any = None


# Keyed by the operator's full name, of one overload (``mine::gate.default``) or of all (``mine::gate``).
REGISTERED: dict[str, Registration] = {}
