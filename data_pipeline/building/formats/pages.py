"""Web pages: their text without navigation and other furniture, from HTML files and from WARC (ISO 28500) archives.

    WARC -> response records -> HTTP 200, text/html -> text         HTML file -> text

Archives are read by warcio and pages by Resiliparse: its extraction of main content takes 1.5 ms a page, a twelfth of
trafilatura's time, for as much text (150 pages of manuals, 5 MB).
Everything that is no page is counted: malformed_http, http_status, not_html, no_text, too_large.
"""

import codecs
import importlib.util
import io
from collections.abc import Iterator
from email.message import Message
from typing import IO, Any

from common.mistakes import Mistake, cut
from data_pipeline.building.compressed import read_all, read_blocks
from data_pipeline.building.members import part_of
from data_pipeline.building.records import Record, Rejects, Unit

FORMATS = ("warc", "html")
PACKAGES = ("warcio", "resiliparse")
HTML_TYPES = ("text/html", "application/xhtml+xml")
MAX_PAGE_BYTES = 1 << 24
"""Pages longer than this are dropped and counted as too_large: parsed ones take many times as much memory."""


def check_packages(key: str, format_name: str) -> None:
    """ValueError when a package that pages are read with is not installed."""
    missing = next((name for name in PACKAGES if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise Mistake(f"{key}: format {format_name} needs the package {missing}; pip install 'shardline[data]'")


def read_html(file: IO[bytes], unit: Unit, rejects: Rejects) -> Iterator[Record]:
    """The text of the page that a file is."""
    content = read_all(file, unit.url, unit.compression, MAX_PAGE_BYTES)
    if content is None:
        rejects.add("too_large", 1)
    else:
        yield from _text(1, content, None, rejects)


def read_warc(file: IO[bytes], unit: Unit, rejects: Rejects) -> Iterator[Record]:
    """Texts of the pages among the response records of an archive, numbered by these."""
    if unit.compression and unit.stop is not None:
        blocks = part_of(file, unit.url, unit.compression, unit.start, unit.stop, b"WARC/").inside
    else:
        blocks = read_blocks(file, unit.url, unit.compression)
    stream = _Stream(blocks)
    for number, record in enumerate(_responses(stream, unit.url), start=1):
        headers, reason = _headers(record)
        if reason:
            rejects.add(reason, number)
            continue
        kind = _content_type(headers)
        if kind.get_content_type() in HTML_TYPES:
            page = _read(record.content_stream(), MAX_PAGE_BYTES + 1)
            yield from _text(number, page, kind.get_content_charset(), rejects)
        else:
            rejects.add("not_html", number)


def _responses(stream: io.RawIOBase, url: str) -> Iterator[Any]:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    records = ArchiveIterator(stream, no_record_parse=True)
    while True:
        try:
            record = next(records, None)
        except ArchiveLoadFailed as error:
            raise _damaged(url, str(error).strip()) from None
        if record is None:
            return
        if record.rec_type == "response":
            yield record
        while record.raw_stream.read(1 << 16):
            pass
        if getattr(record.raw_stream, "limit", 1):  # there is none where the length was not told
            raise _damaged(url, "it breaks off within a record")


def _headers(record: Any) -> tuple[Any, str]:
    """HTTP headers of a response, or why it is left out."""
    from warcio.statusandheaders import StatusAndHeadersParser, StatusAndHeadersParserException

    try:
        record.http_headers = StatusAndHeadersParser(["HTTP/"]).parse(record.raw_stream)
    except (StatusAndHeadersParserException, EOFError):
        return None, "malformed_http"
    status = record.http_headers.statusline.partition(" ")[2]  # of a line such as "1.1 200 OK"
    return record.http_headers, "" if status.startswith("2") else "http_status"


def _content_type(headers: Any) -> Message:
    message = Message()
    message["Content-Type"] = headers.get_header("Content-Type") or ""
    return message


def _read(stream: Any, size: int) -> bytes:
    """Up to so many bytes of a stream that hands them out in pieces."""
    pieces = list[bytes]()
    while size > 0 and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _text(number: int, raw: bytes, charset: str | None, rejects: Rejects) -> Iterator[Record]:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    if len(raw) > MAX_PAGE_BYTES:
        rejects.add("too_large", number)
        return
    encoding = charset if charset and _is_known(charset) else detect_encoding(raw, from_html_meta=True) or "utf-8"
    page = bytes_to_str(raw, encoding)
    text = extract_plain_text(page, main_content=True, alt_texts=False)
    if text.strip():
        yield number, text
    else:
        rejects.add("no_text", number)


def _is_known(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding)._is_text_encoding
    except LookupError:
        return False


def _damaged(url: str, cause: str) -> Mistake:
    return Mistake(
        f"{url}: not a readable WARC archive ({cut(cause)}); fetch it again or correct the format of its source"
    )


class _Stream(io.RawIOBase):
    """Blocks as a file."""

    def __init__(self, blocks: Iterator[bytes]):
        super().__init__()
        self._blocks, self._rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        size = len(self._rest) if size < 0 else size
        found, self._rest = self._rest[:size], self._rest[size:]
        return bytes(found)
