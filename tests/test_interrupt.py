"""Ctrl-C at any moment: one line, exit code 130, nothing half written, and the truth of what was written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from conftest import ROOT, Outcome, in_child
from models.small import odd_names
from onnxprune import __main__

NOTHING = "onnxprune: interrupted, nothing was written\n"
CUT = ["net.onnx", "--channels", "0.3", "--recover", "bias", "--no-latency", "-o", "out.onnx"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(odd_names(), "net.onnx")
    Path("out.onnx").write_bytes(b"an older result")
    return tmp_path


def stop(*_: Any, **__: Any) -> None:
    """Send the signal to this process."""
    os.kill(os.getpid(), signal.SIGINT)


Interrupted = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Where the tests run in the background SIGINT is ignored, and would be by every process that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted(folder: Path, capfd: pytest.CaptureFixture[str]) -> Interrupted:
    """The command in a fork, after a hook that makes something `stop()`; in a process of its own, from its start."""

    def run(hook: str, *, own: bool = False) -> Outcome:
        if own:
            text = f"""
import os, signal, sys
def stop(*_, **__): os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["onnxprune", *{CUT!r}]
{textwrap.dedent(hook)}
from onnxprune.__main__ import main
main()
"""
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=60)
            return Outcome(done.returncode, done.stdout, done.stderr)

        def work() -> None:
            monkey = {"stop": stop}
            exec(textwrap.dedent(hook), monkey)
            sys.argv = ["onnxprune", *CUT]
            __main__.main()

        capfd.readouterr()
        code = in_child(work)
        printed = capfd.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


BEFORE = {
    "imports": """
        import builtins
        plain = builtins.__import__
        def importing(name, *rest, **more):
            if name == "onnxruntime":
                stop()
            return plain(name, *rest, **more)
        builtins.__import__ = importing
    """,
    "analysis": """
        import onnxprune.structure.groups as groups
        import onnxprune.pipeline.recipe
        onnxprune.pipeline.recipe.analyzed = stop
    """,
    "swallowed by a library": """
        import onnxprune.pipeline.recipe
        def swallow(*_, **__):
            try:
                stop()
            except KeyboardInterrupt:
                raise ImportError("multiarray failed to import") from None
        onnxprune.pipeline.recipe.analyzed = swallow
    """,
    "a finalizer": """
        import onnxprune.pipeline.recipe, onnxprune.cli.process, time
        onnxprune.cli.process.GRACE = 0.2
        class Late:
            def __del__(self):
                stop()
        def analyzed(*_, **__):
            Late()
            time.sleep(30)
        onnxprune.pipeline.recipe.analyzed = analyzed
    """,
    "a thread that does not end": """
        import onnxprune.pipeline.recipe, onnxprune.cli.process, threading, time
        onnxprune.cli.process.GRACE = 0.2
        def analyzed(*_, **__):
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor(1) as pool:
                pool.submit(time.sleep, 30)
                stop()
        onnxprune.pipeline.recipe.analyzed = analyzed
    """,
    "saving": """
        import onnxprune.graph.writing as writing
        writing.rename = stop
    """,
}


@pytest.mark.parametrize("moment", BEFORE)
def test_before_the_model_is_there(moment: str, interrupted: Interrupted) -> None:
    assert interrupted(BEFORE[moment], own=moment == "imports") == Outcome(130, "", NOTHING)
    assert sorted(os.listdir()) == ["net.onnx", "out.onnx"]
    assert Path("out.onnx").read_bytes() == b"an older result"


def test_a_request_to_terminate(interrupted: Interrupted) -> None:
    hook = """
        import os, signal
        from onnxprune.pipeline import recipe
        recipe.analyzed = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    """
    assert interrupted(hook) == Outcome(130, "", NOTHING)


def test_after_the_model_is_there(interrupted: Interrupted) -> None:
    written = Outcome(130, "", "onnxprune: interrupted; written: out.onnx\n")
    assert interrupted("import onnxprune.cli.app\nonnxprune.cli.app.render = stop") == written
    onnx.checker.check_model("out.onnx")


def test_a_signal_that_was_to_be_ignored(interrupted: Interrupted) -> None:
    hook = """
        import signal, onnxprune.cli.app as c
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        plain = c.render
        c.render = lambda *a, **k: (stop(), plain(*a, **k))[1]
    """
    assert interrupted(hook).code == 0


def test_from_outside(folder: Path) -> None:
    """A real signal, while modules are imported."""
    run = subprocess.Popen([sys.executable, "-v", "-m", "onnxprune", *CUT], stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if "import 'numpy'" in line:
            break
    run.send_signal(signal.SIGINT)
    _, rest = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in rest
    assert sorted(os.listdir()) == ["net.onnx", "out.onnx"]


def test_training_ends_early_with_what_it_has(tmp_path: Path) -> None:
    """A real signal, once the first state was kept."""
    data, out, kept = ROOT / "models" / "digits_mlp.npz", tmp_path / "out.onnx", tmp_path / "kept"
    words = f"train {data.with_suffix('.onnx')} --train {data} --init 0 --tune 6000steps --threads 1 --cache {kept}"
    command = [sys.executable, "-m", "onnxprune", *words.split(), "-o", str(out), "--json", "-"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not list(kept.glob("training-*.npz")):
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    report = json.loads(said)
    assert 500 <= report["steps"] < 6000 and report["held_out"]["after"] < report["held_out"]["before"]
    assert f"stopped after {report['steps']} of 6000 steps: the best so far is kept" in report["notes"]
    onnx.checker.check_model(out)


def test_the_package_is_light() -> None:
    code = "import sys, onnxprune; print(*(m for m in ('numpy', 'onnx', 'onnxruntime', 'rich') if m in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"


def test_a_pruning_imports_nothing_slow_that_it_does_not_need() -> None:
    code = "import sys, onnxprune.pipeline.recipe; print(*(m for m in {} if m in sys.modules))"
    slow = ("scipy.stats", "scipy.optimize", "jinja2", "PIL", "onnx_graphsurgeon")
    assert subprocess.check_output([sys.executable, "-c", code.format(slow)], text=True) == "\n"


def test_warnings_of_libraries_do_not_show(interrupted: Interrupted) -> None:
    hook = """
        import logging, os, warnings
        import onnxprune.pipeline.recipe
        def analyzed(*_, **__):
            warnings.warn("of python")
            logging.getLogger("x").warning("of logging")
            os.write(2, b"of native code")
            raise onnxprune.OptionError("enough")
        onnxprune.pipeline.recipe.analyzed = analyzed
    """
    assert interrupted(hook) == Outcome(2, "", "onnxprune: enough\n")
