"""Optional packages that only some functions need."""

from importlib.util import find_spec

from lightning_fold.errors import MissingPackageError


def require(what: str, *packages: str, extra: str = "export") -> None:
    """Raise ``MissingPackageError``, with the install command, unless all ``packages`` can be imported.

    Args:
        what: the function or file that needs them; the message starts with it.
        packages: import names.
        extra: the extra of this package that installs them.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingPackageError(f"{what} needs {', '.join(missing)}: pip install 'lightning-fold[{extra}]'.")
