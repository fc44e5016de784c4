"""A page in headless Chromium, driven over the browser's own pipe: scripts are run in it, and what they give comes back."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-pipe", "--window-size=1300,900",
)  # fmt: skip


class Browser:
    """A browser with one page.

    Args:
        profile: a directory for its files.
        downloads: where what is downloaded goes to.

    Raises:
        RuntimeError: in `js`, the script has thrown; in `wait`, it did not become true in time.
    """

    def __init__(self, profile: Path, downloads: Path):
        asks, self.out = (_high(end) for end in os.pipe())
        self.answers, tells = (_high(end) for end in os.pipe())
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{asks} 4>&{tells}', *command]
        self.process = subprocess.Popen(
            shell, pass_fds=(asks, tells), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(asks)
        os.close(tells)
        self.number, self.received, self.session, self.thrown = 0, b"", None, list[str]()
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Page.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self.out)
        self.process.terminate()
        self.process.wait(20)
        os.close(self.answers)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the browser's protocol; what it answers."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.thrown.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.received:
            part = os.read(self.answers, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.received += part
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Load a page from the beginning, also where only what follows # differs."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def js(self, script: str) -> Any:
        """What an expression gives, as JSON has it; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.js(f"Boolean({script})"):
                return
            time.sleep(0.03)
        raise RuntimeError(f"not in {seconds} s: {script}; the page says {self.js('document.body.innerText')!r:.500}")


def _high(end: int) -> int:
    """The same end of a pipe under a number that is not 3 or 4, which are the browser's own."""
    found = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(end)
    return found
