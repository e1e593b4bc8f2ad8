"""The report in a browser: everything shows, and nothing is too wide."""

from __future__ import annotations

import dataclasses
import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest
from absl.testing import absltest
from commands import ROOT
from evaluation_report_test import make_split, report_data

from recsys.report.page import render_page

sys.path.insert(0, str(ROOT / "scripts"))
import browser

BROWSER = browser.find_browser()
FLAGS = (
    *browser.FLAGS,
    "--window-size=1400,1000",
    # The wrapper looks into frames that are files as well.
    "--allow-file-access-from-files",
    # What a page complains about goes to standard error.
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
    "--dump-dom",
)
WIDTHS = (360, 1280)
# Shows the page in a frame of each width and measures it there.
WRAPPER = """<!DOCTYPE html><body><pre id="found"></pre>
<script>
const found = [];
for (const width of %s) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:800px;border:0`;
  frame.onload = () => {
    const page = frame.contentDocument;
    const right = page.documentElement.clientWidth;
    found.push({
      width,
      visible: right,
      scrolled: page.documentElement.scrollWidth,
      images: [...page.images].map(image => ({
        natural: image.naturalWidth,
        shown: image.getBoundingClientRect().width,
        right: image.getBoundingClientRect().right,
        source: image.currentSrc.length,
      })),
      // Text that the edge of the page cuts off, boxes that scroll aside.
      cut: [...page.querySelectorAll("h1,h2,h3,p,li,dd,dt,figcaption,a")]
        .filter(each => each.getBoundingClientRect().right > right + 0.5)
        .map(each => each.textContent.slice(0, 40)),
      scrolling: [...page.querySelectorAll(".scroll")]
        .filter(each => each.scrollWidth > each.clientWidth).length,
      background: page.defaultView.getComputedStyle(page.body)
        .backgroundColor,
    });
    document.getElementById("found").textContent = JSON.stringify(found);
  };
  frame.src = "index.html";
  document.body.append(frame);
}
</script>
"""


def open_page(page: str) -> tuple[list[dict], str]:
    """Opens a page in both widths.

    Returns:
        What was measured, narrow first, and what the browser complained of.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = pathlib.Path(folder)
        (path / "index.html").write_text(page, "utf-8")
        (path / "wrapper.html").write_text(WRAPPER % list(WIDTHS), "utf-8")
        process = subprocess.run(
            [
                BROWSER,
                *FLAGS,
                f"--user-data-dir={path / 'profile'}",
                (path / "wrapper.html").as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=240,
        )
    match = re.search(r'<pre id="found">(.*?)</pre>', process.stdout, re.DOTALL)
    if not match or not match[1]:
        raise AssertionError(
            f"the browser showed nothing: {process.stderr[-2000:]}"
        )
    found = json.loads(html.unescape(match[1]))
    complaints = "\n".join(
        line for line in process.stderr.split("\n") if "CONSOLE" in line
    )
    return sorted(found, key=lambda each: each["width"]), complaints


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium, found none")
class BrowserTest(absltest.TestCase):
    def check(self, page: str, num_figures: int) -> list[dict]:
        found, complaints = open_page(page)
        self.assertEqual(complaints, "")
        self.assertEqual([each["width"] for each in found], list(WIDTHS))
        for each in found:
            self.assertLessEqual(each["scrolled"], each["visible"])
            self.assertEqual(each["cut"], [])
            self.assertLen(each["images"], num_figures)
            for image in each["images"]:
                self.assertGreater(image["natural"], 0)
                self.assertGreater(image["shown"], 250)
                self.assertLessEqual(image["right"], each["visible"])
            self.assertEqual(each["background"], "rgb(255, 255, 255)")
        return found

    def test_page(self):
        _, wide = self.check(render_page(report_data()), 5)
        self.assertEqual(wide["scrolling"], 0)

    def test_long_names_and_several_relevant_items(self):
        data = report_data(make_split("held_out_users"))
        long = "runs/" + "a-long-path/" * 10 + "x" * 80
        others = [dataclasses.replace(each, name=long) for each in data.others]
        page = render_page(
            dataclasses.replace(
                data, data_name=long, others=others, notes=[long]
            )
        )
        self.check(page, 5)

    def test_the_check_notices_what_it_looks_for(self):
        bad = (
            "<!DOCTYPE html><p style='width:2000px'>wide</p>"
            "<img src='data:image/png;base64,AAAA' alt=''>"
            "<script>console.error('a complaint')</script>"
        )
        found, complaints = open_page(bad)
        self.assertIn("a complaint", complaints)
        for each in found:
            self.assertGreater(each["scrolled"], each["visible"])
            self.assertEqual(each["cut"], ["wide"])
            self.assertEqual(each["images"][0]["natural"], 0)


if __name__ == "__main__":
    absltest.main()
