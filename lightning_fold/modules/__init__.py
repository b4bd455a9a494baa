"""LightningModules."""

from lightning_fold.modules.classifier import Classifier

__all__ = ["Classifier"]
