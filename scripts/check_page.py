"""Opens the page of recsys.serve in Chromium and looks for faults.

Start a server, then:

    python scripts/check_page.py --address=http://127.0.0.1:8501/

In two widths, in light and dark, it opens every view and reports what
axe-core (https://github.com/dequelabs/axe-core, fetched by npm) finds against
accessibility, what the console complains of, requests to elsewhere, and what
is wider than the window. `--pictures=DIR` keeps a picture of each view, and
`--recording=FILE.gif` records a visit (needs Pillow). The exit code is 1 where
something was found.
"""

from __future__ import annotations

import asyncio
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

import browser

from recsys.command_line import Command
from recsys.errors import InputError

_WIDTHS = (390, 1280)
_VIEWS = ("list", "map", "users")

COMMAND = Command(
    "check_page",
    "Looks for faults of the page of recsys.serve in a browser.",
    ["scripts/check_page.py --address=http://127.0.0.1:8501/"],
)
COMMAND.add_flag(
    str,
    "address",
    "Of a running server.",
    group="Run",
    default="http://127.0.0.1:8501/",
)
COMMAND.add_flag(
    str,
    "axe",
    "A package of axe-core for npm, or a path of axe.min.js.",
    group="Run",
    default="axe-core@4",
)
COMMAND.add_flag(
    pathlib.Path, "pictures", "Folder for a picture of each view.", group="Run"
)
COMMAND.add_flag(
    pathlib.Path, "recording", "A GIF for a recording of a visit.", group="Run"
)


def fetch_axe(name: str) -> str:
    """Returns the source of axe-core, from a file or by npm."""
    path = pathlib.Path(name)
    if path.is_file():
        return path.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                ["npm", "pack", "--silent", name], cwd=folder, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                "--axe must be a file, or a package that npm can fetch. "
                f"Received: {name} ({error})"
            ) from error
        [archive] = pathlib.Path(folder).glob("*.tgz")
        with tarfile.open(archive) as packed:
            source = packed.extractfile("package/axe.min.js")
            assert source is not None
            return source.read().decode()


async def open_view(page: browser.Page, view: str) -> None:
    """Opens a view and fills it as far as it can be."""
    await page.click(f"#tab-{view}")
    if view == "users":
        await page.wait("document.querySelector('#user-list button')")
        await page.click("#user-list li:nth-child(7) button")
        await page.wait("document.querySelector('#user-view .card')")
    if view == "list":
        await page.click(".why button")
        await page.wait("document.querySelector('.why .chips li')")
    if view == "map":
        await page.evaluate("document.getElementById('map').focus()")
        await page.press("ArrowRight")
    await asyncio.sleep(0.3)


async def check(values: dict[str, Any]) -> list[str]:
    """Returns a line for each fault."""
    axe = fetch_axe(values["axe"])
    address = values["address"]
    faults = []
    async with browser.open_browser() as page:
        await page.show(address)
        ids = await page.evaluate(
            "fetch('/api/search?limit=5').then(found => found.json())"
            ".then(items => items.map(item => item.item_id))"
        )
        history = "#" + "&".join(f"h={each}" for each in ids)
        for width in _WIDTHS:
            for dark in (False, True):
                where = f"{width}{'-dark' * dark}"
                await page.show(address + history, width, dark=dark)
                await page.evaluate(f"{axe}; true")
                for view in _VIEWS:
                    await open_view(page, view)
                    found = await page.evaluate(
                        "axe.run().then(found => JSON.stringify("
                        "found.violations.map(each => [each.id, each.help, "
                        "each.nodes.map(node => node.html.slice(0, 120))])))"
                    )
                    faults += [
                        f"{where} {view}: {fault}"
                        for fault in json.loads(found)
                    ]
                    wide, seen = await page.evaluate(
                        "[document.documentElement.scrollWidth, innerWidth]"
                    )
                    if wide > seen:
                        faults.append(f"{where} {view}: {wide} pixels wide")
                    if values["pictures"]:
                        folder = pathlib.Path(values["pictures"])
                        folder.mkdir(parents=True, exist_ok=True)
                        path = folder / f"{view}-{where}.png"
                        path.write_bytes(await page.picture(full=True))
                    print(f"{where} {view}: {len(json.loads(found))} faults")
        if values["recording"]:
            await record(page, address, pathlib.Path(values["recording"]))
        elsewhere = [url for url in page.requests if address not in url]
        faults += page.complaints
        faults += [f"asks {url}" for url in elsewhere if url != "about:blank"]
    return faults


async def record(page: browser.Page, address: str, path: pathlib.Path) -> None:
    """Writes a GIF of a visit."""
    from PIL import Image

    frames: list[Image.Image] = []
    lasting: list[int] = []

    async def keep(milliseconds: int) -> None:
        content = io.BytesIO(await page.picture())
        frame = Image.open(content).convert("RGB")
        frames.append(frame.resize((900, 563), Image.Resampling.LANCZOS))
        lasting.append(milliseconds)

    await page.show(address, 1280, 800)
    await keep(1200)
    for title in ("blade run", "alien", "2001"):
        await page.evaluate("document.getElementById('search').focus()")
        await page.type(title)
        await page.wait("document.querySelector('#found [aria-selected=true]')")
        await asyncio.sleep(0.3)
        await keep(900)
        await page.press("Enter")
        await asyncio.sleep(0.6)
        await keep(1400)
    await page.evaluate(
        "(() => {const e = document.getElementById('variety'); e.value = 0.6;"
        "e.dispatchEvent(new Event('input'));})()"
    )
    await asyncio.sleep(0.6)
    await keep(1800)
    await open_view(page, "map")
    await keep(2200)
    await open_view(page, "users")
    await keep(2500)
    # One palette for all: colors would flicker.
    film = Image.new("RGB", (900, 563 * len(frames)))
    for place, frame in enumerate(frames):
        film.paste(frame, (0, 563 * place))
    # The commonest, which are those of surfaces, and others from everywhere.
    counts = sorted(film.getcolors(2**24), reverse=True)[:96]
    others = film.quantize(160, Image.Quantize.MAXCOVERAGE).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([x for _, color in counts for x in color] + others)
    none = Image.Dither.NONE
    first, *rest = [f.quantize(palette=palette, dither=none) for f in frames]
    first.save(
        path,
        save_all=True,
        append_images=rest,
        duration=lasting,
        loop=0,
        optimize=True,
    )


def main(values: dict[str, Any]) -> int:
    """Checks the page, and prints what is found."""
    faults = asyncio.run(check(values))
    print("\n".join(faults) or "No fault found.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
