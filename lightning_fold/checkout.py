"""Whether the files of this package are all in place; a checkout without symbolic links lacks one folder."""

from pathlib import Path

from lightning_fold.errors import CheckoutError


def check_links(package: Path) -> None:
    """Refuse a text file where a symbolic link should lead to the callbacks.

    Args:
        package: folder of this package; an installed wheel holds a real folder.

    Raises:
        ImportError: git wrote the link as a text file, as it does on Windows unless told otherwise.
    """
    link = package / "callbacks"
    if link.is_file():
        raise CheckoutError(
            f"{link} is a text file; expected a symbolic link to ../callbacks, which git writes as text where "
            "core.symlinks is false (the default on Windows; turn Developer Mode on there first). Run 'git config "
            "core.symlinks true && git checkout -- lightning_fold/callbacks', or install a wheel that was built where "
            "links work."
        )
