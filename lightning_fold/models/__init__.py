"""Networks of this package, and a function that builds any network from a name and arguments."""

from lightning_fold.models.causal_transformer import CausalTransformer
from lightning_fold.models.cifar_resnet import CifarResNet
from lightning_fold.models.factory import build_network
from lightning_fold.models.mlp import MLP
from lightning_fold.models.simple_vit import SimpleViT

__all__ = ["MLP", "CausalTransformer", "CifarResNet", "SimpleViT", "build_network"]
