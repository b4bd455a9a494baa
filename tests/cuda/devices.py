"""Which values a test gets on the CPU, in the usual suite, and which on a GPU."""

import pytest


def on_devices(name, cpu, cuda):
    """Parameters of a test: these values of ``name`` on the CPU, and those on a GPU."""
    on_gpu = [pytest.param("cuda", value, marks=pytest.mark.cuda) for value in cuda]
    return pytest.mark.parametrize(
        f"device, {name}", [*(("cpu", value) for value in cpu), *on_gpu], indirect=["device"]
    )
