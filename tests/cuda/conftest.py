"""What the tests of compiled kernels share: the compiler, the rows of all kernels, measured once."""

import pathlib

import pytest

from measure import ROOT, measured
from nvrtc import Nvrtc


def pytest_addoption(parser):
    parser.addoption("--cache", type=pathlib.Path, default=ROOT / "target" / "cuda-table",
                     help="where measured kernels are kept by content")


@pytest.fixture(scope="session")
def nvrtc():
    return Nvrtc()


@pytest.fixture(scope="session")
def rows(request):
    return measured(request.config.getoption("--cache"))
