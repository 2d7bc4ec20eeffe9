"""A headless Chromium for tests and benchmarks of pages, through chromedriver on this machine.

The protocol is W3C WebDriver (https://www.w3.org/TR/webdriver2/), spoken with http.client.
"""

import http.client
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
AVAILABLE = bool(CHROMIUM and DRIVER)

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "End": "\ue010",
    "Home": "\ue011",
    "ArrowLeft": "\ue012",
    "ArrowUp": "\ue013",
    "ArrowRight": "\ue014",
    "ArrowDown": "\ue015",
}


class Browser:
    """One window."""

    def __init__(self, port: int, session: str):
        self.port, self.session = port, session

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Returns the value that a command answers with."""
        return _request(self.port, method, f"/session/{self.session}{path}", body)

    def open(self, path: Path) -> None:
        """Opens a file and waits until its load event."""
        self.call("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what the body of a function returns in the page."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str, seconds: float = 20.0) -> Any:
        """Returns the first true value of a script."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)
        return value

    def press(self, *keys: str) -> None:
        """Presses keys, one after the other, on what has the focus."""
        codes = [KEYS.get(key, key) for key in keys]
        steps = [{"type": t, "value": c} for c in codes for t in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keys", "actions": steps})

    def move(self, selector: str, x: float, y: float, click: bool = False) -> None:
        """Moves the pointer to a place in an element, in pixels from its upper left corner."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        left, top = self.run(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [b.left, b.top]",
            selector,
        )
        steps: list[dict] = [
            {"type": "pointerMove", "duration": 0, "x": round(left + x), "y": round(top + y)}
        ]
        if click:
            steps += [{"type": t, "button": 0} for t in ("pointerDown", "pointerUp")]
        self._act({"type": "pointer", "id": "mouse", "actions": steps})

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Presses at one place of an element, moves to another, lets go."""
        self.move(selector, *start)
        left, top = self.run(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [b.left, b.top]",
            selector,
        )
        x, y = round(left + end[0]), round(top + end[1])
        steps = [
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "duration": 50, "x": x, "y": y},
            {"type": "pointerUp", "button": 0},
        ]
        self._act({"type": "pointer", "id": "mouse", "actions": steps})

    def console(self) -> list[str]:
        """Returns messages since the last call: errors, warnings, refusals of the policy."""
        return [m["message"] for m in self.call("POST", "/se/log", {"type": "browser"})]

    def requested(self) -> list[str]:
        """Returns the addresses that were asked for since the last call."""
        found = []
        for entry in self.call("POST", "/se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def _act(self, source: dict) -> None:
        self.call("POST", "/actions", {"actions": [source]})


@contextmanager
def browser(width: int = 1400, height: int = 1000, *flags: str) -> Generator[Browser]:
    """Starts Chromium with a fresh profile, and ends it."""
    assert CHROMIUM and DRIVER
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            port = _port(driver)
            options = {
                "binary": CHROMIUM,
                "args": [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
                + list(flags),
            }
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            body = {"capabilities": {"alwaysMatch": wanted}}
            session = _request(port, "POST", "/session", body)["sessionId"]
            try:
                window = Browser(port, session)
                # The first tab shows a page of the browser's own, which loads parts of itself.
                window.call("POST", "/url", {"url": "about:blank"})
                window.requested()
                yield window
            finally:
                _request(port, "DELETE", f"/session/{session}", None)
        finally:
            driver.terminate()
            driver.wait(20)


def _port(driver: subprocess.Popen) -> int:
    lines = iter(driver.stdout.readline, "") if driver.stdout else iter(())
    for line in lines:
        if found := re.search(r"successfully on port (\d+)", line):
            return int(found[1])
    raise RuntimeError("chromedriver did not start.")


def _request(port: int, method: str, path: str, body: Any) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        value = json.loads(connection.getresponse().read())["value"]
    finally:
        connection.close()
    if isinstance(value, dict) and "error" in value:
        raise RuntimeError(f"{value['error']}: {value['message']}")
    return value
