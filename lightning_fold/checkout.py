"""Check that all files of this package are in place; a checkout without symbolic links lacks one folder."""

from pathlib import Path

from lightning_fold.errors import CheckoutError


def check_links(package: Path) -> None:
    """Raise an error if the symbolic link to the callbacks is a text file.

    Args:
        package: folder of this package; an installed wheel contains a real folder instead of the link.

    Raises:
        CheckoutError: git wrote the link as a text file, as it does on Windows by default.
    """
    link = package / "callbacks"
    if link.is_file():
        raise CheckoutError(
            f"{link} is a text file; expected a symbolic link to ../callbacks. Git writes links as text files if "
            "core.symlinks is false (the default on Windows; turn on Developer Mode there first). Run 'git config "
            "core.symlinks true && git checkout -- lightning_fold/callbacks', or install a wheel built on a system "
            "with symbolic links."
        )
