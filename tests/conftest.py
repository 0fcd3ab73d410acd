"""What all tests share: where things lie, and which tests may be skipped where nothing may be missing."""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "assets"
STRICT = bool(os.environ.get("ONNXPRUNE_CI"))  # a skipped test is a failure, unless its reason begins like one of these
MAY_SKIP = (
    "not installed here", "../shared ", "this onnx ends at opset", "root reads and writes everything",
    *["no browser here"] * (os.environ.get("ONNXPRUNE_BROWSER") != "required"),
)  # fmt: skip


@pytest.fixture
def shared() -> Path:
    """Models and data for development; tests that use them skip where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    return SHARED


class Outcome(NamedTuple):
    """Of a command: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process, with words as in a shell, or a list of them."""
    from onnxprune.cli import app

    def run(words: str | list[str]) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            app.main(shlex.split(words) if isinstance(words, str) else words)
        printed = capfd.readouterr()
        assert isinstance(exit_.value.code, int)
        return Outcome(exit_.value.code, printed.out, printed.err)

    return run


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork; its exit status, negative for the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def brief_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the proposals where channels are reordered for N:M: for tests that need some order only."""
    monkeypatch.setattr("onnxprune.solvers.permutation.PROPOSALS", 1000)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected lives to the end, so that the collector of garbage need not walk it again and
    again, which took a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def reasons(config: pytest.Config) -> Counter[str]:
    """How many tests were skipped for each reason."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", ()) if reporter else ()
    return Counter(r.longrepr[2].removeprefix("Skipped: ") for r in skipped)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason, count in reasons(config).most_common():
        refused = STRICT and not reason.startswith(MAY_SKIP)
        terminalreporter.write_line(f"{count} skipped: {reason}{' (which may not be here)' if refused else ''}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    here = STRICT and not hasattr(session.config, "workerinput")  # a worker of pytest-xdist sees its own tests alone
    if here and not all(reason.startswith(MAY_SKIP) for reason in reasons(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
