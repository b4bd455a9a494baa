"""The errors that this package raises; each message says what was found, what was expected and what to do.

Each is a :class:`LightningFoldError` and also a subclass of the corresponding built-in error.
"""


class LightningFoldError(Exception):
    """Base class of all errors of this package."""


class ArgumentError(LightningFoldError, ValueError):
    """An argument, or something passed with it, has an invalid value."""


class ArgumentTypeError(LightningFoldError, TypeError):
    """An argument has the wrong type."""


class TraceError(LightningFoldError, ValueError):
    """``torch.export`` cannot trace the network with the example inputs."""


class RewriteError(LightningFoldError, RuntimeError):
    """The rewritten network does not run or is not exact; the network is as it was before."""


class FileError(LightningFoldError, OSError):
    """A file cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """The file does not exist."""


class MissingPackageError(LightningFoldError, ModuleNotFoundError):
    """A function needs an optional package that is not installed."""


class CheckoutError(LightningFoldError, ImportError):
    """Files of this package are missing."""
