"""The pytest plugin. Until ``--conformance`` is given it imports nothing but pytest."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("conformance", "conformance of task queue backends")
    group.addoption(
        "--conformance",
        nargs="?",
        const="",
        default=None,
        metavar="TARGET",
        help="run the conformance suite against TARGET: MODULE:FACTORY, MODULE:HARNESS or a registered scheme such as "
        "sqlite. Without a value: the target that the ini option conformance_backend names",
    )
    group.addoption(
        "--conformance-report",
        default=None,
        metavar="DIR",
        help="write the report into DIR: a page to read (index.html), the data (conformance.json), a badge and "
        "Cucumber Messages; where DIR ends in .json, the data alone to that file",
    )
    group.addoption(
        "--conformance-seed",
        type=int,
        default=0,
        metavar="N",
        help="the seed of what the suite draws at random (default: %(default)s)",
    )
    group.addoption(
        "--conformance-profile",
        choices=("default", "quick", "soak"),
        default="default",
        help="how much to run: default is what a verdict rests on; quick is for the inner loop and never ends in "
        "CONFORMANT; soak goes on with new seeds for --conformance-minutes",
    )
    group.addoption(
        "--conformance-minutes",
        type=float,
        default=10.0,
        metavar="N",
        help="how long the profile soak looks for counterexamples with new seeds (default: %(default)s)",
    )
    group.addoption(
        "--conformance-suite",
        default=None,
        metavar="N",
        help="the version of the suite that counts; newer checks run and are reported, but do not count. Without it: "
        "what the ini option conformance_suite names, or the newest version",
    )
    parser.addini("conformance_suite", "the version of the suite that counts, see --conformance-suite", default="")
    parser.addini("conformance_backend", "the target of --conformance without a value", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Hand over to the suite, if it was asked for."""
    target = config.getoption("conformance")
    if target is None:
        if config.getoption("conformance_report") is not None:
            raise pytest.UsageError("--conformance-report needs --conformance, which runs the suite that it reports on")
        return
    try:
        from taskqueue_conformance.run import ConformanceRun  # noqa: PLC0415 - not before it is asked for
    except ModuleNotFoundError as error:
        raise pytest.UsageError(
            f"--conformance needs {error.name!r}, which is not installed: pip install 'taskqueue-spec[conformance]'"
        ) from error
    config.pluginmanager.register(ConformanceRun.prepare(config, target), "taskqueue_conformance_run")
