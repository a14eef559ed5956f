"""What every test can take, and what none may do: let a credential be seen.

Whatever a test logs or prints, and whatever reaches its upstream, is looked through for the
credentials of its fixtures. A test in which one turns up where it does not belong fails.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import pytest

# for the bench's programs; last, since the package under test may be an installed one
sys.path.append(str(Path(__file__).parents[1]))

pytest_plugins = ["tornadoproxy.testing", "program", "in_process", "postgres", "redis_server"]
pytest_plugins += ["aws_cloud", "scene", "several", "tls", "clouds", "oidc_provider", "signing_in"]
pytest.register_assert_rewrite(
    "admin_api",
    "admin_sdk",
    "browsers",
    "budget_team",
    "console_site",
    "desk",
    "held_stream",
    "oidc_console",
    "people",
    "served",
)

_YOUNG = 5_000  # objects; looking for garbage at 700, or at 50,000, takes half as long again

FRAMEWORKS = ("test_responses_clients.py", "test_responses_own_tools.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import the frameworks, which takes seconds, only where their tests are to run."""
    unwanted = collection_path.name in FRAMEWORKS and "not long" in config.option.markexpr
    return True if unwanted else None


# nothing that is imported or collected becomes garbage
gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage from now on, except among the modules and the tests."""
    gc.freeze()
    gc.set_threshold(_YOUNG)
    gc.enable()


def pytest_configure() -> None:
    """Log everything of ours, so that what few would see is looked through as well."""
    for name in ("tornadoproxy", "tornado"):
        logging.getLogger(name).setLevel(logging.DEBUG)


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "let load tests be as large as those whose figures the documentation has"
    parser.addoption("--full-scale", action="store_true", help=help_text)


@pytest.fixture
def full_scale(request: pytest.FixtureRequest) -> bool:
    """Whether `--full-scale` is given."""
    return bool(request.config.getoption("full_scale"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run one file, one test or the tests marked `alone` in this process, else three on two cores.

    Some tests wait for a deadline or a process while another worker can use the core; but each
    worker imports and collects everything first. Those marked `long` get one worker a core.
    """
    given = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else []
    one = len(given) == 1 and ("::" in given[0] or given[0].endswith(".py"))
    if one or config.option.markexpr == "alone":
        return 0
    cores = os.cpu_count() or 1
    return cores if config.option.markexpr == "long" else cores + (cores + 1) // 2


@pytest.fixture
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that logged an error: clients' and upstreams' faults are not the proxy's."""
    yield
    logged = caplog.get_records("call")  # by now `caplog.records` are those of the teardown
    assert [record.getMessage() for record in logged if record.levelname == "ERROR"] == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that let its upstream see the client's credential."""
    report = yield
    if report.when == "call":
        _fail(report, _upstream(item))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Generator[None]:
    """Fail a test, or a subtest, that let a credential be seen in what it printed or logged."""
    _fail(report, _in_output(report))
    return (yield)


def _fail(report: pytest.TestReport, places: Iterable[str]) -> None:
    if report.passed and (found := list(places)):
        report.outcome = "failed"
        report.longrepr = f"a credential is in: {', '.join(found)}"


def _in_output(report: pytest.TestReport) -> Iterator[str]:
    # not at the top: pytest is to load this first, as a plugin, and to rewrite its assertions
    from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY

    for title, text in report.sections:
        if title.endswith(report.when) and (TEST_TOKEN in text or TEST_UPSTREAM_KEY in text):
            yield title


def _upstream(item: pytest.Item) -> Iterator[str]:
    from tornadoproxy.testing import TEST_TOKEN, ScriptedServer

    arguments: dict[str, object] = getattr(item, "funcargs", {})
    upstream = arguments.get("upstream")
    if isinstance(upstream, ScriptedServer):
        for received in upstream.requests:
            if TEST_TOKEN.encode() in received.raw_head:
                yield f"what reached the upstream: {received}"
