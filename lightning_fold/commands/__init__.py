"""The commands after training: compress, compare and export. Their docstrings are their help."""

from lightning_fold.commands.compare import compare
from lightning_fold.commands.compress import compress
from lightning_fold.commands.export import export_network

__all__ = ["compare", "compress", "export_network"]
