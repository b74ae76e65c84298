"""Files elsewhere: what may pass is tried again at the byte it broke off at, what will not is one sentence."""

import contextlib
import errno
import gzip
import http.server
import io
import json
import re
import threading
import time

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.mistakes import is_mistake
from data_pipeline.building import remote_files, sources
from data_pipeline.building.remote_files import may_pass, open_file
from data_pipeline.config import SourceConfig
from tests.data_pipeline.building.reads import parts_of, read_all

TEXTS = [f"document {number} " * 40 for number in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    monkeypatch.setattr(remote_files, "FIRST_WAIT", 0.0001)


class Failure(Exception):
    """What libraries for object stores raise."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


ERRORS = [ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError("slow"), Failure(503), OSError(errno.EIO, "io")]


class Flaky(fsspec.AbstractFileSystem):
    """Files in memory; every third call fails, each time in another way."""

    protocol = "flaky"
    cachable = False
    files: dict[str, bytes] = {}
    errors = ERRORS
    calls = 0
    opened = 0

    @classmethod
    def fail_at_times(cls):
        cls.calls += 1
        if cls.calls % 3 == 0:
            raise cls.errors[cls.calls // 3 % len(cls.errors)]

    def info(self, path, **options):
        self.fail_at_times()
        if path not in self.files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.files[path]), "type": "file"}

    def _open(self, path, *args, **options):
        Flaky.opened += 1
        self.fail_at_times()
        return FlakyFile(self.files[path])


class FlakyFile(io.BytesIO):
    """Gives a part of what it is asked for, and fails in between."""

    def read(self, size=-1):
        Flaky.fail_at_times()
        return super().read(min(size, 30_000) if size >= 0 else size)


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "files", {})
    monkeypatch.setattr(Flaky, "errors", ERRORS)
    monkeypatch.setattr(Flaky, "calls", 0)
    monkeypatch.setattr(Flaky, "opened", 0)
    return Flaky


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "b.jsonl.gz"])
def test_a_store_that_fails_every_third_time_gives_every_document_once(flaky, name):
    content = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), content, row_group_size=300)
    members = b"".join(gzip.compress(LINES[start : start + 9000]) for start in range(0, len(LINES), 9000))
    kinds = {
        "a.jsonl": LINES,
        "a.jsonl.gz": gzip.compress(LINES),
        "a.parquet": content.getvalue(),
        "b.jsonl.gz": members,
    }
    flaky.files[name] = kinds[name]
    for unit_bytes in (10**9, 300_000):
        assert read_all(SourceConfig(path=f"flaky://{name}"), unit_bytes)[0] == TEXTS
    assert flaky.opened > 3


def test_reading_goes_on_at_the_byte_it_broke_off_at(flaky, monkeypatch):
    flaky.files["a"] = LINES
    read = []
    monkeypatch.setattr(FlakyFile, "read", lambda file, size=-1: read.append(file.tell()) or noting(file, size))

    def noting(file, size):
        Flaky.fail_at_times()
        return io.BytesIO.read(file, min(size, 30_000))

    with open_file("flaky://a") as file:
        found = b"".join(iter(lambda: file.read(50_000), b""))
    assert found == LINES
    assert len(read) > len(set(read)), "no read failed"
    assert read == sorted(read)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (Failure(500), True),
        (Failure(429), True),
        (Failure(403), False),
        (TimeoutError(), True),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (http.client.IncompleteRead(b""), True),
        (RuntimeError("whatever"), False),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(error, passes):
    assert may_pass(error) == passes


@pytest.mark.parametrize(
    ("error", "words", "tries"),
    [
        (Failure(503), r"flaky://a: cannot be read: status 503 \(tried 7 times\); check the address", 7),
        (Failure(403), r"flaky://a: cannot be read: status 403; check the address, the credentials", 1),
    ],
)
def test_what_does_not_pass_is_one_sentence(flaky, monkeypatch, error, words, tries):
    flaky.files["a"] = LINES
    file = open_file("flaky://a")
    calls = []
    monkeypatch.setattr(FlakyFile, "read", lambda *_: calls.append(1) or fail(error))
    monkeypatch.setattr(Flaky, "fail_at_times", lambda *_: None)

    def fail(error):
        raise error

    with pytest.raises(ValueError, match=words) as caught:
        file.read(10)
    assert is_mistake(caught.value)
    assert len(calls) == tries


# ---- a server that hangs up


class Server(http.server.BaseHTTPRequestHandler):
    """Answers ranges; hangs up within an answer, and answers 503, every now and then."""

    content = b""
    requests: list[tuple[int, int]] = []
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.begin(200, len(self.content))

    def do_GET(self):
        start, stop = 0, len(self.content)
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(found[1]), min(int(found[2] or stop) + 1, stop)
        self.requests.append((start, stop))
        if len(self.requests) % 4 == 2:
            self.begin(503, 0)
            return
        self.begin(206, stop - start, f"bytes {start}-{stop - 1}/{len(self.content)}")
        if len(self.requests) % 4 == 0:
            stop = (start + stop) // 2
            self.close_connection = True
        self.wfile.write(self.content[start:stop])

    def begin(self, status, length, content_range=""):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(content):
    handler = type("Handler", (Server,), {"content": content, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_that_hangs_up_gives_every_document_once():
    pytest.importorskip("aiohttp")
    texts = [f"document {number} " * 900 for number in range(2000)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    with serving(content) as (url, handler):
        assert read_all(SourceConfig(path=f"{url}/a.jsonl"))[0] == texts
        starts = [start for start, _ in handler.requests]
        assert len(starts) > len(set(starts)), "it never hung up"
        assert starts == sorted(starts), "what was read already was asked for again"
        assert read_all(SourceConfig(path=f"{url}/a.jsonl"), 8_000_000)[0] == texts


def test_a_plan_asks_for_heads_alone(tmp_path):
    pytest.importorskip("aiohttp")
    table = pa.table({"text": [f"{number} " * 5000 for number in range(200)]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    content = (tmp_path / "a.arrow").read_bytes()
    with serving(content) as (url, handler):
        assert len(parts_of(SourceConfig(path=f"{url}/a.arrow"), 200_000)) > 10
    assert sum(stop - start for start, stop in handler.requests) < len(content) / 8


# ---- many files


class Slow(fsspec.AbstractFileSystem):
    """A store that takes its time to answer."""

    protocol = "slow"
    cachable = False
    files: dict[str, bytes] = {}
    latency = 0.01

    def glob(self, path, detail=False, **options):
        time.sleep(self.latency)
        return {name: {"name": name, "size": len(raw), "type": "file"} for name, raw in self.files.items()}

    def exists(self, path, **options):
        return False

    def info(self, path, **options):
        return {"name": path, "size": len(self.files[path]), "type": "file"}

    def _open(self, path, *args, **options):
        time.sleep(self.latency)
        return SlowFile(self.files[path])


class SlowFile(io.BytesIO):
    def read(self, size=-1):
        time.sleep(Slow.latency)
        return super().read(size)


def test_footers_of_many_files_are_waited_for_side_by_side(monkeypatch):
    fsspec.register_implementation("slow", Slow, clobber=True)
    content = io.BytesIO()
    pq.write_table(pa.table({"text": ["some text"] * 40}), content, row_group_size=10)
    monkeypatch.setattr(Slow, "files", {f"{number:04d}.parquet": content.getvalue() for number in range(1000)})
    source = SourceConfig(path="slow://*.parquet")
    started = time.monotonic()
    units = parts_of(source, 1)
    seconds = time.monotonic() - started
    assert len(units) == 4000
    alone = 1000 * 3 * Slow.latency
    assert seconds < alone / 4, f"{seconds:.1f} s, one after the other {alone:.0f} s"
    assert sources.FILES_AT_ONCE == 16
