"""Drives a headless Chromium by its DevTools protocol, with aiohttp alone.

async with browser.open_browser() as page:
    await page.show("http://127.0.0.1:8501/")
    await page.evaluate("document.title")
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SECONDS = 60
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowDown": 40, "ArrowRight": 39}


def find_browser() -> str | None:
    """Returns the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page that is open.

    Attributes:
        complaints: Uncaught errors, and what the console had to complain of.
        requests: The address of each request.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            found = message.json()
            params = found.get("params", {})
            if "id" in found:
                self._answers.pop(found["id"]).set_result(found)
            elif found["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            elif found["method"] == "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            elif found["method"] == "Log.entryAdded":
                entry = params["entry"]
                if entry["level"] in ("warning", "error"):
                    self.complaints.append(
                        f"{entry['text']} {entry.get('url', '')}"
                    )
            elif found["method"] == "Runtime.consoleAPICalled" and (
                params["type"] in ("warning", "error", "assert")
            ):
                self.complaints.append(str(params["args"]))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message: dict[str, Any] = {
            "id": number,
            "method": method,
            "params": params,
        }
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        found = await asyncio.wait_for(self._answers[number], _SECONDS)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']}")
        return found["result"]

    async def attach(self) -> None:
        """Makes a page and listens to it."""
        made = await self.call("Target.createTarget", url="about:blank")
        found = await self.call(
            "Target.attachToTarget", targetId=made["targetId"], flatten=True
        )
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def show(
        self,
        address: str,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
    ) -> None:
        """Opens an address in a window of a size and waits for its scripts.

        A page says that it is ready by `document.body.dataset.ready`.
        """
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme"}
        scheme["value"] = "dark" if dark else "light"
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme, calm])
        await self.call("Page.navigate", url="about:blank")
        await self.call("Page.navigate", url=address)
        await self.wait("document.body?.dataset.ready === 'true'")

    async def evaluate(self, code: str) -> Any:
        """Returns the value of an expression; waits for it if it must."""
        found = await self.call(
            "Runtime.evaluate",
            expression=code,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{code[:200]}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def wait(self, condition: str, seconds: float = 20) -> None:
        """Waits until an expression is true."""
        end = asyncio.get_running_loop().time() + seconds
        while not await self.evaluate(f"Boolean({condition})"):
            if asyncio.get_running_loop().time() > end:
                raise TimeoutError(f"{condition}; {self.complaints}")
            await asyncio.sleep(0.03)

    async def type(self, text: str) -> None:
        """Types a text into what has the focus."""
        for letter in text:
            await self.call("Input.insertText", text=letter)

    async def press(self, key: str) -> None:
        """Presses a key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r"} if (key, kind) == ("Enter", "keyDown") else {}
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=_KEYS[key],
                **more,
            )

    async def click(self, selector: str) -> None:
        """Clicks into the middle of an element, as a mouse does."""
        x, y = await self.evaluate(
            f"""(() => {{
              const node = document.querySelector({selector!r});
              node.scrollIntoView({{block: "center"}});
              const box = node.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                clickCount=1,
            )

    async def picture(self, full: bool = False) -> bytes:
        """Returns a PNG of the window, or of the whole page."""
        found = await self.call(
            "Page.captureScreenshot", captureBeyondViewport=full
        )
        return base64.b64decode(found["data"])


@contextlib.asynccontextmanager
async def open_browser() -> AsyncIterator[Page]:
    """Starts a browser of its own, with one page.

    Raises:
        RuntimeError: None is installed, or it does not start.
    """
    program = find_browser()
    if program is None:
        raise RuntimeError(f"expected one of {', '.join(NAMES)}: none found")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                program,
                *FLAGS,
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = pathlib.Path(folder, "DevToolsActivePort")
            for _ in range(_SECONDS * 20):
                lines = port.read_text().split() if port.is_file() else []
                if len(lines) > 1:
                    break
                await asyncio.sleep(0.05)
            else:
                raise RuntimeError(f"{program} did not start")
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(
                    f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_msg_size=0
                ) as socket,
            ):
                page = Page(socket)
                await page.attach()
                yield page
        finally:
            process.terminate()
            process.wait(20)
