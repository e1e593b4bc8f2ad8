"""Downloads from a local server that stalls, breaks off, lies and refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent import futures
from unittest import mock

from absl.testing import absltest, parameterized
from commands import run

from recsys import datasets, downloads
from recsys.data import sources
from recsys.datasets import Dataset
from recsys.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
# More than a megabyte, below which an attempt counts as one without progress.
# What breaks off within a block of 65,536 bytes is kept up to that block.
CONTENT = bytes(range(256)) * 10_000
U_DATA = "7\t30\t4\t100\n7\t10\t2\t50\n9\t30\t5\t70\n"


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("ml-100k/u.data", U_DATA)
    return stream.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's attributes say, and notes what it was asked."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        status = server.statuses.pop(0) if server.statuses else None
        if status:
            self.send_error(status)
            return
        begin = 0
        wanted = self.headers.get("Range")
        is_same = self.headers.get("If-Range") in (None, server.etag)
        if wanted and is_same and server.has_ranges:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(server.content):
                self.send_error(416)
                return
        body = server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            end = len(server.content)
            span = f"bytes {begin + server.shift}-{end - 1}/{end}"
            self.send_header("Content-Range", span)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # How much to send before breaking off, or stalling if negative.
        limit = server.limits.pop(0) if server.limits else len(body)
        self.wfile.write(body[: abs(limit)])
        self.wfile.flush()
        if limit < 0:
            server.released.wait(30)

    def log_message(self, *arguments):
        pass


class DatasetsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = self.enterContext(tempfile.TemporaryDirectory())
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.content = CONTENT
        self.server.etag = '"one"'
        self.server.has_ranges = True
        self.server.shift = 0
        self.server.statuses = []
        self.server.limits = []
        self.server.ranges = []
        self.server.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.addCleanup(self.server.released.set)
        self.url = f"http://127.0.0.1:{self.server.server_port}/set.bin"
        self.enterContext(mock.patch.dict(os.environ, {"NO_PROXY": "*"}))
        self.enterContext(mock.patch.object(downloads, "_WAIT", 0.01))
        self.enterContext(mock.patch.object(downloads, "_TIMEOUT", 0.5))
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))

    def offer(self, name="set", **fields):
        dataset = Dataset(**{"page": self.url, "terms": "Free.", **fields})
        self.enterContext(mock.patch.dict(datasets.DATASETS, {name: dataset}))
        return pathlib.Path(self.root, name)

    def fetch(self, name="set"):
        return datasets.fetch(name, self.root)

    def assert_fetched(self, expected=CONTENT):
        path = self.fetch()
        self.assertEqual(path, pathlib.Path(self.root, "set", "set.bin"))
        self.assertEqual(path.read_bytes(), expected)
        names = {each.name for each in path.parent.iterdir()}
        self.assertEqual(names, {"set.bin", "download.json", ".lock"})

    def test_is_downloaded_once(self):
        digest = hashlib.sha256(CONTENT).hexdigest()
        self.offer(sha256=digest, size=len(CONTENT))
        self.assert_fetched()
        self.assert_fetched()
        self.assertEqual(self.server.ranges, [None])

    def test_a_broken_download_resumes_where_it_ended(self):
        self.offer(sha256=hashlib.sha256(CONTENT).hexdigest())
        self.server.limits = [1_310_720, 1_048_576]
        self.assert_fetched()
        self.assertEqual(
            self.server.ranges, [None, "bytes=1310720-", "bytes=2359296-"]
        )

    def test_a_stalled_download_resumes(self):
        self.offer()
        self.server.limits = [-1_310_720]
        self.assert_fetched()
        self.assertEqual(self.server.ranges, [None, "bytes=1310720-"])

    def test_a_killed_download_resumes_in_another_process(self):
        part = self.offer() / "set.bin.part"
        self.server.limits = [-1_310_720]
        code = (
            "from recsys import datasets\n"
            f"datasets.DATASETS['set'] = datasets.Dataset({self.url!r}, '')\n"
            f"datasets.fetch('set', {self.root!r})"
        )
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        deadline = time.monotonic() + 60
        while not part.exists() or part.stat().st_size < 1_000_000:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = part.stat().st_size
        self.assert_fetched()
        self.assertEqual(self.server.ranges, [None, f"bytes={kept}-"])

    def test_a_server_without_ranges_sends_the_whole_again(self):
        self.offer()
        self.server.has_ranges = False
        self.server.limits = [1_310_720]
        self.assert_fetched()
        self.assertEqual(self.server.ranges, [None, "bytes=1310720-"])

    @parameterized.parameters(None, 'W/"weak"')
    def test_what_cannot_be_told_apart_is_not_resumed(self, etag):
        self.offer()
        self.server.etag = etag
        self.server.limits = [1_310_720]
        self.assert_fetched()
        self.assertEqual(self.server.ranges, [None, None])

    def test_a_file_that_changed_meanwhile_is_downloaded_whole(self):
        folder = self.offer()
        self.server.limits = [1_310_720, *[0] * 9]
        with self.assertRaises(InputError):
            self.fetch()
        self.assertLen((folder / "set.bin.part").read_bytes(), 1_310_720)
        self.server.limits = []
        self.server.etag = '"two"'
        self.server.content = CONTENT[::-1]
        self.assert_fetched(CONTENT[::-1])

    def test_another_range_than_asked_for_is_not_taken(self):
        self.offer()
        self.server.limits = [1_310_720]
        self.server.shift = 7
        self.assert_fetched()
        self.assertEqual(self.server.ranges, [None, "bytes=1310720-", None])

    def test_a_part_beyond_the_end_is_begun_anew(self):
        self.offer()
        self.server.limits = [1_310_720, *[0] * 9]
        with self.assertRaises(InputError):
            self.fetch()
        self.server.limits = []
        self.server.content = CONTENT[:1000]
        self.assert_fetched(CONTENT[:1000])
        self.assertEqual(self.server.ranges[-2:], ["bytes=1310720-", None])

    def test_gives_up_without_progress_and_keeps_what_there_is(self):
        folder = self.offer()
        self.server.limits = [1_310_720, *[10] * 99]
        with self.assertRaisesRegex(
            InputError,
            f"'set' needs {self.url}; rerun to resume after 1,310,720 bytes, "
            f"or put a copy of the file into {folder}. Received: .*",
        ):
            self.fetch()
        # The first brought more than a megabyte; four more in a row did not.
        self.assertLen(self.server.ranges, 5)
        self.server.limits = []
        self.assert_fetched()
        self.assertEqual(self.server.ranges[-1], "bytes=1310720-")

    @parameterized.parameters(404, 403, 410)
    def test_a_refusal_is_final(self, status):
        self.offer()
        self.server.statuses = [status]
        with self.assertRaisesRegex(InputError, f"{status} .*{self.url}"):
            self.fetch()
        self.assertEqual(self.server.ranges, [None])

    def test_a_busy_server_is_asked_again(self):
        self.offer()
        self.server.statuses = [503, 429, 500]
        self.assert_fetched()
        self.assertLen(self.server.ranges, 4)

    def test_no_server(self):
        self.offer(page="http://127.0.0.1:1/set.bin")
        with self.assertRaisesRegex(InputError, "'set' needs .*refused"):
            self.fetch()

    def test_another_file_than_published_is_not_kept(self):
        folder = self.offer(sha256="0" * 64)
        digest = hashlib.sha256(CONTENT).hexdigest()
        with self.assertRaisesRegex(
            InputError,
            rf"expected the SHA-256 0{{64}} \(published\). Received: {digest}",
        ):
            self.fetch()
        names = {path.name for path in folder.iterdir()}
        self.assertNoCommonElements(names, {"set.bin", "set.bin.part"})

    def test_a_later_download_is_compared_with_the_first(self):
        folder = self.offer()
        self.assert_fetched()
        (folder / "set.bin").unlink()
        self.server.content = CONTENT[::-1]
        with self.assertRaisesRegex(
            InputError, r"of the first download, in .*/set/download.json\)"
        ):
            self.fetch()
        self.server.content = CONTENT
        self.assert_fetched()

    def test_a_file_that_was_damaged_later_is_reported_and_kept(self):
        folder = self.offer()
        self.assert_fetched()
        (folder / "set.bin").write_bytes(b"damaged")
        with self.assertRaisesRegex(InputError, "set.bin: expected the SHA-2"):
            self.fetch()
        self.assertEqual((folder / "set.bin").read_bytes(), b"damaged")

    def test_a_copy_put_there_by_hand_is_verified(self):
        folder = self.offer(sha256=hashlib.sha256(CONTENT).hexdigest())
        folder.mkdir()
        (folder / "set.bin").write_bytes(CONTENT)
        self.assert_fetched()
        self.assertEmpty(self.server.ranges)

    def test_concurrent_processes_download_once(self):
        self.offer()
        with futures.ThreadPoolExecutor(4) as pool:
            paths = set(pool.map(lambda _: self.fetch(), range(4)))
        self.assertLen(paths, 1)
        self.assertEqual(self.server.ranges, [None])

    def test_a_named_set_is_read_like_its_file(self):
        self.server.content = archive()
        self.offer("ml-100k", page=self.url.replace("bin", "zip"))
        log = sources.read("ml-100k", datasets_dir=self.root)
        self.assertEqual(log.interactions.timestamps.tolist(), [100, 50, 70])
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": self.root}):
            os.rename(
                pathlib.Path(self.root, "ml-100k"),
                pathlib.Path(self.root, "recsys-moved"),
            )
            folder = pathlib.Path(self.root, "recsys")
            folder.mkdir()
            pathlib.Path(self.root, "recsys-moved").rename(folder / "ml-100k")
            self.assertLen(sources.read("ml-100k").interactions, 3)
        self.assertLen(self.server.ranges, 1)

    def test_a_path_of_the_same_name_goes_first(self):
        self.enterContext(contextlib.chdir(self.root))
        os.mkdir("ml-100k")
        pathlib.Path("ml-100k", "u.data").write_text(U_DATA)
        self.assertLen(sources.read("ml-100k").interactions, 3)
        with self.assertRaisesRegex(InputError, "`datasets_dir` needs `data`"):
            sources.read("ml-100k", datasets_dir=self.root)

    @parameterized.parameters("movielens-small", "tfds:movielens/100k-ratings")
    def test_the_folder_has_no_effect_on_other_logs(self, data):
        with self.assertRaisesRegex(InputError, "`datasets_dir` needs `data`"):
            sources.read(data, datasets_dir=self.root)

    def test_the_columns_of_rows_without_a_header_are_known(self):
        self.server.content = b"A1,B7,5.0,1400\nA2,B7,1.0,1300\n"
        self.offer(
            "amazon-2014/<category>",
            page=self.url.replace("set.bin", "<category>.csv"),
            columns="user_id,item_id,rating,timestamp",
        )
        log = sources.read("amazon-2014/Beauty", datasets_dir=self.root)
        self.assertEqual(log.interactions.ratings.tolist(), [5.0, 1.0])

    def test_check_ins_of_gowalla(self):
        self.server.content = gzip.compress(
            b"0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n"
            b"0\t2010-10-18T22:17:43Z\t30.2\t-97.7\t420315\n"
        )
        page = self.url.replace("set.bin", "checkins.txt.gz")
        known = dataclasses.replace(datasets.DATASETS["gowalla"], page=page)
        self.offer("gowalla", **dataclasses.asdict(known))
        log = sources.read("gowalla", datasets_dir=self.root).interactions
        self.assertEqual(log.item_ids[log.items].tolist(), ["22847", "420315"])
        seconds = log.timestamps[0] - log.timestamps[1]
        # A day, an hour, 37 minutes and 44 seconds; in microseconds if dates.
        self.assertIn(seconds, [92_264, 92_264_000_000])

    def test_reviews_of_steam(self):
        self.server.content = gzip.compress(
            b"{u'username': u'Ann, \"A\"', u'hours': 0.3, u'product_id': "
            b"u'725280', u'date': u'2017-12-17', u'text': u'a\\nb'}\n"
            b"{u'username': u'Bob', u'product_id': u'328100', "
            b"u'date': u'2017-08-02'}\n"
        )
        page = self.url.replace("set.bin", "steam_reviews.json.gz")
        known = dataclasses.replace(datasets.DATASETS["steam"], page=page)
        self.offer("steam", **dataclasses.asdict(known))
        log = sources.read("steam", datasets_dir=self.root).interactions
        self.assertEqual(log.user_ids[log.users].tolist(), ['Ann, "A"', "Bob"])
        self.assertEqual(log.item_ids[log.items].tolist(), ["725280", "328100"])
        # 2 August to 17 December, 137 days; in microseconds since 1970.
        days = (log.timestamps[0] - log.timestamps[1]) / 86_400_000_000
        self.assertEqual(days, 137)
        table = pathlib.Path(self.root, "steam", "interactions.jsonl.gz")
        self.assertEqual(
            gzip.decompress(table.read_bytes()).decode().splitlines()[1],
            '{"username": "Bob", "product_id": "328100", '
            '"date": "2017-08-02", "hours": null}',
        )

    def test_a_damaged_line_of_steam(self):
        self.server.content = gzip.compress(
            b"{u'username': u'A', u'product_id': u'7'}\n{oops\n"
        )
        page = self.url.replace("set.bin", "steam_reviews.json.gz")
        self.offer("steam", page=page, keys=["username"])
        for _ in range(2):
            with self.assertRaisesRegex(InputError, "line 2: expected a Pyth"):
                self.fetch("steam")

    @parameterized.parameters("yelp", "retailrocket")
    def test_what_needs_an_account_is_put_there_by_hand(self, name):
        dataset = datasets.DATASETS[name]
        folder = pathlib.Path(self.root, name)
        with self.assertRaisesRegex(
            InputError,
            f"download {dataset.file} from {dataset.page} and put it into "
            f"{folder}. Received: no such file there",
        ):
            self.fetch(name)
        folder.mkdir(parents=True)
        (folder / dataset.file).write_text("here\n")
        self.assertEqual(self.fetch(name), folder / dataset.file)

    def test_lists_them(self):
        self.offer(size=2_560_000)
        self.fetch()
        code, out, err = run(datasets, f"--datasets_dir={self.root}")
        self.assertEqual((code, err), (0, ""))
        lines = {line.split()[0]: line for line in out.splitlines()}
        self.assertContainsSubset(datasets.DATASETS, lines)
        self.assertRegex(lines["set"], r"^set +2\.6 MB +set +Free\.$")
        self.assertRegex(lines["ml-1m"], r"^ml-1m +5\.9 MB +- +GroupLens")
        self.assertRegex(lines["yelp"], r"^yelp +by hand +- +Yelp")

    def test_downloads_by_command(self):
        folder = self.offer()
        flags = (f"--datasets_dir={self.root}", "--download=set")
        code, out, _ = run(datasets, *flags)
        self.assertEqual(code, 0)
        self.assertEqual(
            out,
            f"Downloading set (Free.) to {folder}\n{folder / 'set.bin'}\n",
        )
        code, out, err = run(datasets, "--download=nonesuch")
        self.assertEqual((code, out), (2, ""))
        self.assertRegex(err, "must be one of ml-100k, .*'nonesuch'\n$")

    @parameterized.parameters(
        "", "nonesuch", "amazon-2014", "amazon-2014/", "amazon-2014/../x",
        "amazon-2014/<category>", "amazon-2014/a/b", "ml-1m/x", "/ml-1m",
    )  # fmt: skip
    def test_other_names(self, name):
        self.assertIsNone(datasets.find(name))

    def test_a_category(self):
        self.assertEqual(
            datasets.find("amazon-2023/All_Beauty").page.rpartition("/")[2],
            "All_Beauty.csv.gz",
        )

    def test_published_checksums_are_those_of_tensorflow_datasets(self):
        package = importlib.util.find_spec("tensorflow_datasets").origin
        path = pathlib.Path(package).parent / "url_checksums" / "movielens.txt"
        rows = [line.split() for line in path.read_text().splitlines()]
        published = {url: (int(size), sha) for url, size, sha, _ in rows}
        known = {
            each.page: (each.size, each.sha256)
            for each in datasets.DATASETS.values()
            if each.sha256 or each.size
        }
        self.assertLen(known, 3)
        self.assertEqual(known, {url: published[url] for url in known})


if __name__ == "__main__":
    absltest.main()
