"""Train compressible networks with PyTorch Lightning and turn them into small dense ones.

Every rewrite works in place on any network that ``torch.export`` can trace and returns a :class:`RewriteReport`.
``__init__.pyi`` lists the public names; each is imported on first use, because importing torch takes seconds.
"""

from pathlib import Path

import lazy_loader

from lightning_fold.checkout import check_links

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

check_links(Path(__file__).parent)
