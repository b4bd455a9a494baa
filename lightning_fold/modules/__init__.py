"""LightningModules that train a network: Classifier and LanguageModel."""

from lightning_fold.modules.classifier import Classifier
from lightning_fold.modules.language_model import LanguageModel

__all__ = ["Classifier", "LanguageModel"]
