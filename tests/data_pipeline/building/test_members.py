"""Compressed files of many members are read in parts as they are read whole."""

import gzip
import io
import itertools
import json
import random

import pyarrow as pa
import pytest

from data_pipeline.building import members
from data_pipeline.building.members import has_members, part_of
from data_pipeline.config import SourceConfig
from tests.data_pipeline.building.reads import parts_of, read_all
from tests.data_pipeline.building.test_pages import HTML, OK, page, text_of, write_archive


def compressed(raw, compression, level=9):
    if compression == "gzip":
        return gzip.compress(raw, level)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(raw)
    return sink.getvalue().to_pybytes()


def many(raw, compression, size, between=b""):
    """Members of so many bytes each, which end anywhere in a line."""
    parts = [raw[start : start + size] for start in range(0, len(raw), size)]
    return between.join(compressed(part, compression) for part in parts)


def bgzip(raw, size):
    """Members as bgzip writes them (SAM specification, section 4.1), with their sizes in a field of their heads."""
    blocks = []
    for start in range(0, len(raw) + size, size):
        body = gzip.compress(raw[start : start + size])[10:]
        head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + (len(body) + 17).to_bytes(2, "little")
        blocks.append(head + body)
    return b"".join(blocks)


TEXTS = [f"{number} " + random.Random(number).randbytes(number % 90).hex() for number in range(3000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
SKIPPABLE = b"\x5e\x2a\x4d\x18\x08\0\0\0" + b"8 bytes."
KINDS = {
    "gzip of any lengths": ("a.jsonl.gz", lambda: many(LINES, "gzip", 3001)),
    "gzip of long lines": ("a.jsonl.gz", lambda: many(LINES, "gzip", 40)),
    "bgzip": ("a.jsonl.gz", lambda: bgzip(LINES, 4096)),
    "zstd": ("a.jsonl.zst", lambda: many(LINES, "zstd", 3001)),
    "zstd with skippable frames": ("a.jsonl.zst", lambda: SKIPPABLE + many(LINES, "zstd", 3001, SKIPPABLE)),
    "lines": ("a.txt.gz", lambda: many("".join(f"{text}\n" for text in TEXTS).encode(), "gzip", 2000)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit_bytes", [20_000, 150_000])
def test_parts_of_a_compressed_file_together_are_the_file(tmp_path, kind, unit_bytes):
    name, content = KINDS[kind]
    (tmp_path / name).write_bytes(content())
    source = SourceConfig(path=str(tmp_path / name), document="line")
    assert len(parts_of(source, unit_bytes)) > 1
    assert read_all(source, unit_bytes)[0] == TEXTS


def test_archives_are_cut_at_records_though_pages_hold_archives(tmp_path):
    words = [f"Page {number} of so many, with some words more." for number in range(60)]
    inner = write_archive(tmp_path / "inner", [(page("inside"), HTML, OK, [])] * 3).read_bytes()
    records = [record for each in words for record in ((page(each), HTML, OK, []), (inner, "image/png", OK, []))]
    path = write_archive(tmp_path / "a.warc.gz", records)
    source = SourceConfig(path=str(path))
    assert len(parts_of(source, 5_000)) > 10
    texts, rejects = read_all(source, 5_000)
    assert texts == [text_of(each) for each in words]
    assert rejects.by_reason() == {"not_html": 60}


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_one_member_is_one_part_and_looked_at_in_its_beginning_only(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(members, "GZIP_PROBE", 1000)
    monkeypatch.setattr(members, "ZSTD_PROBE", 1000)
    monkeypatch.setattr(members, "SEARCHED_BYTES", 500)
    name = {"gzip": "a.jsonl.gz", "zstd": "a.jsonl.zst"}[compression]
    (tmp_path / name).write_bytes(compressed(LINES, compression))
    source = SourceConfig(path=str(tmp_path / name))
    assert len(parts_of(source, 10_000)) == 1
    assert read_all(source, 10_000)[0] == TEXTS


def test_frames_too_long_to_be_seen_are_known_by_the_table_of_zstd_s_seekable_format(monkeypatch):
    monkeypatch.setattr(members, "ZSTD_PROBE", 10)
    whole = many(LINES, "zstd", 200_000)
    assert not has_members(io.BytesIO(whole), "zstd")
    assert has_members(io.BytesIO(whole + b"\x5e\x2a\x4d\x18\x09\0\0\0" + b"\0" * 5 + b"\xb1\xea\x92\x8f"), "zstd")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_head_within_a_member_is_no_member(compression):
    inner = compressed(b"inner\n" * 5, compression)
    # what does not get shorter by compressing is stored as it is
    noise = random.Random(1).randbytes(3000)
    outer = [compressed(noise + inner + noise + b"\n", compression, level=0) for _ in range(9)]
    whole = b"".join(outer)
    assert whole.count(inner) == 9
    borders = [sum(map(len, outer[:count])) for count in range(10)]
    for start, border in itertools.pairwise(borders):
        part = part_of(io.BytesIO(whole), "a", compression, start + 1, border + 1)
        expected = b"" if border == len(whole) else noise + inner + noise + b"\n"
        assert b"".join(part.inside) == expected


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_file_of_many_members_is_one_sentence(tmp_path, name):
    whole = many(LINES, "gzip" if name.endswith("gz") else "zstd", 3001)
    (tmp_path / name).write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=rf"{name}: the \w+ stream is truncated or damaged"):
        read_all(SourceConfig(path=str(tmp_path / name)), 30_000)
