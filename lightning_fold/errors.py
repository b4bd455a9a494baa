"""The errors that this package raises; each message says what was found, what is expected and what to do.

Every one is a :class:`LightningFoldError` and the built-in error that a reader would expect in its place.
"""


class LightningFoldError(Exception):
    """Root of all errors of this package."""


class ArgumentError(LightningFoldError, ValueError):
    """An argument, or what was passed with it, has a value that cannot be used."""


class ArgumentTypeError(LightningFoldError, TypeError):
    """An argument has the wrong type."""


class TraceError(LightningFoldError, ValueError):
    """``torch.export`` cannot trace the network with the example inputs."""


class RewriteError(LightningFoldError, RuntimeError):
    """The rewritten network does not run or is not exact; the network is as it was before."""


class FileError(LightningFoldError, OSError):
    """A file cannot be written or read."""


class MissingFileError(FileError, FileNotFoundError):
    """There is no such file."""


class MissingPackageError(LightningFoldError, ModuleNotFoundError):
    """A function needs an optional package that is not installed."""


class CheckoutError(LightningFoldError, ImportError):
    """The files of this package are not complete."""
