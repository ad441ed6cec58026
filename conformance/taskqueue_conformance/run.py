"""One run of the suite inside pytest: from the target to the verdict."""

import contextlib
import os
import platform
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import pytest

from taskqueue_conformance import children, report, terminal, turns
from taskqueue_conformance.check import Check
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.items import PROPERTY, SUITE, Layer, Setting
from taskqueue_conformance.profiles import PROFILES, SOAK, soak_check
from taskqueue_conformance.secrets import without_password
from taskqueue_conformance.suite import LAYERS, SUITE_VERSION, every_check, required_checks
from taskqueue_conformance.suite_versions import versions
from taskqueue_conformance.target import TargetError, preflight, resolve
from taskqueue_conformance.verdict import Outcome, Tally, Verdict

_SELECTION = "taskqueue_conformance_selection"


class ConformanceRun:
    """The plugin object that is registered once ``--conformance`` was given.

    Attributes:
        selection: The node ids of the suite to run; ``[SUITE]`` for all of it, and empty where paths were given.
        tally: The results so far.
    """

    def __init__(self, config: pytest.Config, target: str, harness: Harness, selection: list[str]) -> None:
        self.config = config
        self.target = target
        self.harness = harness
        self.selection = selection
        self.worker = hasattr(config, "workerinput")
        self.backend_class = ""
        self.profile = PROFILES[config.getoption("conformance_profile")]
        self.version = self._suite_version(config)
        self.checks = dict(every_check())
        required = dict(required_checks(self.version))
        newer = {check_id: check for check_id, check in self.checks.items() if check_id not in required}
        seed: int = config.getoption("conformance_seed")
        self.setting = Setting(harness, target, seed, self.profile.effort, frozenset(newer))
        if self.profile.name == SOAK:
            minutes: float = config.getoption("conformance_minutes")
            soak = soak_check(required, self.setting, minutes=minutes, progress=self._show_progress)
            self.checks[soak.id] = required[soak.id] = soak
        self.tally = Tally(required, newer)
        self.started = time.perf_counter()
        self.started_at = datetime.now(UTC)
        self.report_path: Path | None = None

    @classmethod
    def prepare(cls, config: pytest.Config, option: str) -> Self:
        """Resolve the target, start the harness and look at the backends that it makes.

        Raises:
            pytest.UsageError: The target cannot be tested, with one message that says why.
        """
        target = option or str(config.getini("conformance_backend"))
        if not target:
            raise pytest.UsageError(
                "--conformance without a value needs the ini option conformance_backend, for example "
                'conformance_backend = "mypackage.testing:Harness" below [tool.pytest.ini_options]'
            )
        place = config.getoption("conformance_report")
        complaint = None if place is None else report.complaint(Path(place))
        if complaint is not None:
            raise pytest.UsageError(f"--conformance-report={place}: {complaint}")
        selection = cls._selection(config)
        try:
            run = cls(config, target, resolve(target), selection)
            if run.worker:
                # What a backend imports when it is first used must be there before a check freezes time.
                preflight(target, run.harness)
            else:
                run.start()
        except TargetError as error:
            raise pytest.UsageError(str(error)) from error
        return run

    @staticmethod
    def _suite_version(config: pytest.Config) -> int:
        given = config.getoption("conformance_suite") or config.getini("conformance_suite")
        if not given:
            return SUITE_VERSION
        if not str(given).isdecimal() or int(given) not in versions():
            known = ", ".join(map(str, versions()))
            raise pytest.UsageError(f"there is no version {given} of the suite here; --conformance-suite takes {known}")
        return int(given)

    @staticmethod
    def _selection(config: pytest.Config) -> list[str]:
        """Take the suite's node ids out of the arguments; what stays are paths."""
        if hasattr(config, "workerinput"):
            chosen: list[str] = config.workerinput[_SELECTION]
        elif config.args_source is not pytest.Config.ArgsSource.ARGS:
            chosen = [SUITE]
        else:
            chosen = [arg for arg in config.args if _names_suite(arg)]
            paths = [arg for arg in config.args if not _names_suite(arg)]
            if chosen and paths:
                raise pytest.UsageError(
                    f"give either paths ({paths[0]}) or node ids of the suite ({chosen[0]}), not both"
                )
        if chosen:
            config.args = [str(config.rootpath)]
        return chosen

    def start(self) -> None:
        """Start the harness and look at its backends; in the controlling process only."""
        try:
            environment = self.harness.start()
        except Exception as error:
            raise TargetError(f"--conformance={self.target}: Harness.start() failed: {error}") from error
        os.environ.update(environment)
        try:
            self._look_at_deviations()
            self.backend_class = preflight(self.target, self.harness)
        except BaseException:
            self.harness.stop()
            raise

    def _look_at_deviations(self) -> None:
        for unknown in sorted(set(self.harness.deviations) - set(self.checks)):
            raise TargetError(f"--conformance={self.target}: no check is called {unknown!r}, see Harness.deviations")

    # The hooks of pytest; their names and parameters are its own.

    @pytest.hookimpl(tryfirst=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> pytest.CollectReport | None:
        """Put the suite in place of what the session would collect from the file system."""
        if not (self.selection and isinstance(collector, pytest.Session)):
            return None
        layers = [self._layer(collector, name) for name in (*LAYERS, SOAK)]
        return pytest.CollectReport(collector.nodeid, "passed", None, [layer for layer in layers if layer.checks])

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Take ``.feature`` files that were named on the command line as scenarios against the target."""
        if file_path.suffix != ".feature" or self.selection or not parent.session.isinitpath(file_path):
            return None
        # Few runs name a feature.
        from taskqueue_conformance import scenarios  # noqa: PLC0415 - see above
        from taskqueue_conformance.feature_files import FeatureError  # noqa: PLC0415 - see above

        try:
            checks = scenarios.load([file_path])
        except FeatureError as error:
            raise parent.CollectError(str(error)) from error
        layer: Layer = Layer.from_parent(
            parent,
            name=file_path.name,
            # What pytest compares with the arguments of the command line.
            path=file_path,
            nodeid=os.path.relpath(file_path, self.config.rootpath).replace(os.sep, "/"),
            checks=checks,
            setting=self.setting,
        )
        return layer

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker of xdist what was selected; by then its arguments look like anybody's."""
        node.workerinput[_SELECTION] = self.selection

    def pytest_report_header(self) -> str:
        """Say what is tested."""
        what = "" if self.selection else "; paths were given, so the suite does not run and there will be no verdict"
        profile = "" if self.profile.name == "default" else f", profile {self.profile.name}"
        target = without_password(self.target)
        return f"conformance: {target} ({self.backend_class}), seed {self.setting.seed}{profile}{what}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a check's result."""
        noted: Any = dict(report.user_properties).get(PROPERTY)
        result = None if noted is None else self.tally.of(noted["id"])
        if result is None:
            return
        if report.when == "call":
            result.outcome = Outcome(noted["outcome"])
            result.message = noted["message"]
            result.failure = noted["failure"]
            result.breaks = noted["failure"] and noted["failure"]["requirement"]
            result.notes = noted["notes"]
            result.duration_s = report.duration
            result.started_at = report.start
        if report.failed and not result.outcome.failure:
            # Something around the check, such as a warning that the adopter's settings make an error.
            result.outcome = Outcome.FAILED
            result.message = report.longreprtext

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the report, and let the exit status be 0 only for CONFORMANT."""
        if self.worker or not self.gives_verdict:
            return
        place = self.config.getoption("conformance_report")
        if place is not None:
            self.report_path = report.write(Path(place), self.info(), self.tally)
        if self.tally.verdict is not Verdict.CONFORMANT and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        """Print the verdict after everything else."""
        yield
        if self.gives_verdict:
            terminal.write_verdict(terminalreporter, self.info(), self.tally, self.report_path)

    def pytest_unconfigure(self) -> None:
        """End the processes that forked children, and let the harness clean up."""
        children.stop_servers()
        turns.clean_up()
        if not self.worker:
            self.harness.stop()

    @property
    def gives_verdict(self) -> bool:
        """Whether the suite was to run at all."""
        return bool(self.selection) and not self.config.getoption("collectonly")

    def info(self) -> report.RunInfo:
        """Return what this run was, up to now."""
        return report.RunInfo(
            target=without_password(self.target),
            backend_class=self.backend_class,
            capabilities=sorted(self.harness.capabilities),
            not_claimed=sorted(
                {need for result in self.tally.results.values() for need in result.check.needs}
                - self.harness.capabilities
            ),
            suite_version=str(self.version),
            seed=self.setting.seed,
            profile=self.profile.name,
            repeat=self._repeat(),
            versions={
                "python": platform.python_version(),
                "pytest": pytest.__version__,
                "taskqueue-spec": version("taskqueue-spec"),
            },
            platform=f"{platform.system()} {platform.release()}, {platform.machine()}",
            started_at=self.started_at,
            duration_s=time.perf_counter() - self.started,
        )

    def _repeat(self) -> str:
        words = ["pytest", f"--conformance={without_password(self.target)}"]
        if self.setting.seed:
            words.append(f"--conformance-seed={self.setting.seed}")
        if self.profile.name != PROFILES["default"].name:
            words.append(f"--conformance-profile={self.profile.name}")
        if self.version != SUITE_VERSION:
            words.append(f"--conformance-suite={self.version}")
        if self.selection != [SUITE]:
            words += self.selection
        for option in ("keyword", "markexpr"):
            if given := self.config.getoption(option, ""):
                words += [{"keyword": "-k", "markexpr": "-m"}[option], given]
        return shlex.join(words)

    def _layer(self, session: pytest.Session, name: str) -> Layer:
        wanted = [check for check in self.checks.values() if check.layer == name and self._selected(check)]
        checks = [check for check in wanted if self.profile.wants(check, self.checks)]
        return Layer.make(session, name, checks=checks, setting=self.setting)

    def _show_progress(self, line: str, new_seed: bool) -> None:  # noqa: FBT001 - what a callback is told
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        if reporter is None or self.worker:
            return
        with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
            if reporter.isatty:
                reporter.rewrite(line, erase=True)
            elif new_seed:
                reporter.line(line)

    def _selected(self, check: Check) -> bool:
        layer = f"{SUITE}/{check.layer}"
        return any(chosen in {SUITE, layer, f"{layer}::{check.name}"} for chosen in self.selection)


def _names_suite(argument: str) -> bool:
    path = argument.partition("::")[0]
    return (path == SUITE or path.removeprefix(f"{SUITE}/") in LAYERS) and not Path(path).exists()
