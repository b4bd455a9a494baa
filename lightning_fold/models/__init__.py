"""Networks of this package, and one function that builds any network from a name and arguments."""

from lightning_fold.models.causal_transformer import CausalTransformer
from lightning_fold.models.cifar_resnet import CifarResNet
from lightning_fold.models.factory import build_network
from lightning_fold.models.mlp import MLP

__all__ = ["MLP", "CausalTransformer", "CifarResNet", "build_network"]
