"""What the client tests share: a server for the session, an SDK client, and the skip policy."""

import pathlib
import tomllib

import openai
import pytest

from server import Server


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long proofs too")


@pytest.fixture(scope="session")
def server():
    with Server() as server:
        yield server
        server.wait_idle()
        status = server.stop()
        assert status == 0, f"ended with {status}:\n{server.output()}"


@pytest.fixture
def client(server):
    return sdk(server)


@pytest.fixture(scope="session")
def model(server):
    return sdk(server).models.list().data[0].id


@pytest.fixture
def long_proof(request):
    """Leaves a test to tests/run --long; tests/skips.toml says why."""
    if not request.config.getoption("--long"):
        pytest.skip("a long proof")


def sdk(server, **options):
    options = {"api_key": "any", "max_retries": 0, "timeout": 60, **options}
    return openai.OpenAI(base_url=server.url + "/v1", **options)


SKIPS = tomllib.loads(
    (pathlib.Path(__file__).parents[1] / "skips.toml").read_text(encoding="utf-8")
).get("clients", {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skipped test fails, unless tests/skips.toml gives the reason."""
    report = yield
    if report.skipped and item.nodeid.split("/")[-1] not in SKIPS:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped without a reason in tests/skips.toml"
    return report
