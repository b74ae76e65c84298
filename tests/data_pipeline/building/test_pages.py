"""Pages out of archives that warcio wrote, and out of HTML files."""

import gzip
import importlib.util
import io

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from common.mistakes import is_mistake
from data_pipeline.building.formats import pages
from data_pipeline.building.source_files import list_files
from data_pipeline.config import SourceConfig
from tests.data_pipeline.building.reads import read_all


def page(words):
    return (
        "<html><head><title>Title</title><script>var x = 1;</script></head><body><nav><a href='x'>Home</a></nav>"
        f"<main><h1>Heading</h1><p>{words}</p></main><footer>Imprint</footer></body></html>"
    ).encode()


def text_of(words):
    return f"Heading\n\n{words}"


def write_archive(path, records, compressed=True):
    """An archive of responses: body, type of content, status, other headers."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=compressed)
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "test"}))
        for body, kind, status, others in records:
            headers = StatusAndHeaders(status, [("Content-Type", kind), *others], protocol="HTTP/1.1")
            for name in ("metadata", "response"):
                given = headers if name == "response" else None
                record = writer.create_warc_record("http://a/", name, payload=io.BytesIO(body), http_headers=given)
                writer.write_record(record)
    return path


HTML, OK = "text/html; charset=utf-8", "200 OK"
WORDS = "The words of this page are many, \u00e9 and \u4e2d\u6587 among them."


def source_of(path):
    return SourceConfig(path=str(path))


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_pages_of_an_archive_are_read_however_they_are_encoded(tmp_path, name):
    body = page(WORDS)
    chunked = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (50, body[:50], len(body) - 50, body[50:])
    latin = page("caf\u00e9 au lait").decode().encode("latin-1")
    records = [
        (body, HTML, OK, []),
        (body, "text/html", OK, []),
        (body, "application/xhtml+xml", "206 Partial Content", []),
        (gzip.compress(body), HTML, OK, [("Content-Encoding", "gzip")]),
        (chunked, HTML, OK, [("Transfer-Encoding", "chunked")]),
        (latin, "text/html; charset=iso-8859-1", OK, []),
        (body, "text/html; charset=no-such-thing", OK, []),
    ]
    texts, rejects = read_all(source_of(write_archive(tmp_path / name, records, name.endswith("gz"))))
    assert texts == [text_of(WORDS)] * 5 + [text_of("caf\u00e9 au lait"), text_of(WORDS)]
    assert not rejects.counts


def test_what_is_no_page_is_counted_by_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 2000)
    records = [
        (b"\x89PNG", "image/png", OK, []),
        (page(WORDS), HTML, "404 Not Found", []),
        (b"<html><body><script>x</script></body></html>", HTML, OK, []),
        (b"", HTML, OK, []),
        (page(WORDS * 100), HTML, OK, []),
        (page(WORDS), "", OK, []),
        (page(WORDS), HTML, OK, []),
    ]
    texts, rejects = read_all(source_of(write_archive(tmp_path / "a.warc.gz", records)))
    assert texts == [text_of(WORDS)]
    assert rejects.by_reason() == {"http_status": 1, "no_text": 2, "not_html": 2, "too_large": 1}
    assert rejects.examples["too_large"] == [f"{tmp_path / 'a.warc.gz'} record 5"]


def test_a_response_that_is_no_http_is_counted(tmp_path):
    with (tmp_path / "a.warc").open("wb") as file:
        writer = WARCWriter(file, gzip=False)
        for body in (b"20240101 dns answer\n", b""):
            writer.write_record(
                writer.create_warc_record("dns:a", "response", payload=io.BytesIO(body), warc_content_type="text/dns")
            )
    assert read_all(source_of(tmp_path / "a.warc"))[1].by_reason() == {"malformed_http": 2}


def test_an_archive_that_is_none_or_breaks_off_is_one_sentence(tmp_path):
    whole = write_archive(tmp_path / "a.warc", [(page(WORDS), HTML, OK, [])] * 5, compressed=False).read_bytes()
    (tmp_path / "b.warc").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "c.warc").write_bytes(b"no archive\n" * 100)
    for name in ("b.warc", "c.warc"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable WARC archive \(.*\); fetch it again") as caught:
            read_all(source_of(tmp_path / name))
        assert is_mistake(caught.value)
    (tmp_path / "d.warc.gz").write_bytes(gzip.compress(whole)[:-300])
    with pytest.raises(ValueError, match=r"d\.warc\.gz: the gzip stream is truncated or damaged"):
        read_all(source_of(tmp_path / "d.warc.gz"))


def test_an_html_file_is_one_page_where_the_format_says_so(tmp_path):
    (tmp_path / "a.html").write_bytes(page(WORDS))
    (tmp_path / "b.html").write_bytes(b'<meta charset="iso-8859-1"><p>caf\xe9')
    (tmp_path / "c.html").write_bytes(b"")
    assert read_all(SourceConfig(path=str(tmp_path / "a.html")))[0] == [page(WORDS).decode()]
    texts, rejects = read_all(SourceConfig(path=str(tmp_path / "*.html"), format="html"))
    assert texts == [text_of(WORDS), "caf\u00e9"]
    assert rejects.by_reason() == {"no_text": 1}


@pytest.mark.parametrize("name", ["a.warc.gz", "a.html"])
def test_packages_that_are_missing_are_named_before_anything_is_read(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"format \w+ needs the package warcio; pip install 'shardline\[data\]'"):
        list_files([SourceConfig(path=str(tmp_path / name), format="html" if name == "a.html" else "auto")])
