"""A browser without a window, spoken to through its pipe (the DevTools protocol); and where it and axe-core lie.

axe-core, which checks pages for accessibility, is looked for at ONNXPRUNE_AXE: its `axe.min.js`.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update
    --disable-extensions --disable-sync --no-first-run --no-default-browser-check --hide-scrollbars
    --remote-debugging-pipe""".split()
PATIENCE = 60.0  # seconds for an answer


def missing() -> str:
    """Why no page can be looked at here; empty where one can."""
    axe = os.environ.get("ONNXPRUNE_AXE", "")
    lacking = [*["a browser"] * (program() is None), *["axe-core (ONNXPRUNE_AXE)"] * (not Path(axe).is_file())]
    return f"no browser here: {' and '.join(lacking)} absent" if lacking else ""


def axe() -> str:
    """The script of axe-core."""
    return Path(os.environ["ONNXPRUNE_AXE"]).read_text(encoding="utf-8") + ";0"


def program() -> str | None:
    """The browser's program."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page of a browser. messages: what it wrote to its console; requested: the addresses that it asked for."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back, self.rest, self.count, self.session = to, back, b"", 0, ""
        self.messages: list[str] = []
        self.requested: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """What a method of the protocol gives back; raises `RuntimeError` for an error."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, path: Path, *, scheme: str = "light", width: int = 1200) -> None:
        """Show a file, in a colour scheme, in a window of so many pixels."""
        self.messages.clear()
        self.requested.clear()
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.resize(width)
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + PATIENCE
        while self.run("document.readyState") != "complete":
            assert time.monotonic() < end, f"{path} was not loaded"

    def resize(self, width: int) -> None:
        """Make the window so wide, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)

    def run(self, script: str) -> Any:
        """The value of a script, or of the promise that it makes, as plain data."""
        got = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key."""
        code = {"Tab": 9, "ArrowDown": 40, "ArrowRight": 39}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def _next(self) -> Any:
        """The next message that is an answer; others are written down."""
        while True:
            while b"\0" not in self.rest:
                ready, _, _ = select.select([self.back], [], [], PATIENCE)
                part = os.read(self.back, 1 << 16) if ready else b""
                assert part, "the browser does not answer"
                self.rest += part
            raw, _, self.rest = self.rest.partition(b"\0")
            message = json.loads(raw)
            if "id" in message:
                return message
            self._noted(message["method"], message["params"])

    def _noted(self, method: str, told: Any) -> None:
        if method == "Runtime.consoleAPICalled":
            self.messages.append(f"console: {[a.get('value') for a in told['args']]}")
        elif method == "Runtime.exceptionThrown":
            self.messages.append(f"exception: {told['exceptionDetails']['text']}")
        elif method == "Log.entryAdded":
            self.messages.append(f"{told['entry']['level']}: {told['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a browser with a fresh profile, which ends with it."""
    name = program()
    assert name is not None
    (theirs, to), (back, answer) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="onnxprune-browser-", ignore_cleanup_errors=True) as profile:
        words = [name, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        piped = f'exec "$@" 3<&{theirs} 4>&{answer}'
        process = subprocess.Popen(
            ["bash", "-c", piped, "bash", *words], pass_fds=(theirs, answer), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(answer)
        try:
            yield Tab(to, back)
        finally:
            os.close(to)  # which it takes as the end
            os.close(back)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
