import gzip
import io
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.mistakes import is_mistake
from data_pipeline.building import source_files as files
from data_pipeline.building import sources
from data_pipeline.building.source_files import list_files
from data_pipeline.building.sources import Rejects, group_tasks, plan_units, read_documents
from data_pipeline.config import SourceConfig


def read_all(config, unit_bytes=10**9):
    """Texts and rejects of everything a source holds, unit by unit."""
    rejects = Rejects()
    units = plan_units(list_files([config]), [config], unit_bytes)
    return [text for unit in units for _, text in read_documents(unit, config, rejects)], rejects


def json_lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def compress(raw, codec):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(raw)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"])
def test_json_lines_give_back_the_texts_whatever_the_compression(tmp_path, stdlib_documents, name):
    raw = json_lines(stdlib_documents)
    codec = {"gz": "gzip", "st": "zstd"}.get(name[-2:])
    (tmp_path / name).write_bytes(compress(raw, codec) if codec else raw)
    texts, rejects = read_all(SourceConfig(path=str(tmp_path / name)))
    assert texts == stdlib_documents
    assert not rejects.counts


def test_parquet_gives_back_the_texts_of_string_binary_and_dictionary_columns(tmp_path, stdlib_documents):
    texts = stdlib_documents[:40]
    for kind in (pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        column = pa.array([text.encode() for text in texts], pa.binary()).cast(pa.string()).cast(kind)
        pq.write_table(pa.table({"number": range(40), "body": column}), tmp_path / "a.parquet", row_group_size=7)
        assert read_all(SourceConfig(path=str(tmp_path / "a.parquet"), text_key="body"))[0] == texts


def test_parts_of_a_file_together_are_the_file(tmp_path, stdlib_documents):
    (tmp_path / "a.jsonl").write_bytes(json_lines(stdlib_documents))
    pq.write_table(pa.table({"text": stdlib_documents}), tmp_path / "b.parquet", row_group_size=9)
    for name in ("a.jsonl", "b.parquet"):
        config = SourceConfig(path=str(tmp_path / name))
        assert len(plan_units(list_files([config]), [config], 50_000)) > 10
        assert read_all(config, unit_bytes=50_000)[0] == stdlib_documents


@given(
    lines=st.lists(st.text(alphabet="ab\u2028\x0c\x85\r\x00 \u4e2d", max_size=12), max_size=20),
    last=st.booleans(),
    unit_bytes=st.integers(1, 60),
)
def test_every_cut_keeps_lines_whole_and_in_order(tmp_path_factory, lines, last, unit_bytes):
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    raw = "\n".join(lines) + ("\n" if last else "")
    path.write_bytes(raw.encode())
    texts, _ = read_all(SourceConfig(path=str(path), document="line"), unit_bytes)
    assert texts == [line for line in (line.removesuffix("\r") for line in raw.split("\n")) if line]


@given(block=st.integers(1, 40))
def test_lines_do_not_depend_on_the_blocks_they_are_read_in(tmp_path_factory, block):
    raw = "one\n\ntwo two two two two two two\r\nthree\n\u4e2d\u6587\n".encode()
    blocks = (raw[start : start + block] for start in range(0, len(raw), block))
    assert list(sources._split_lines(blocks)) == raw.split(b"\n")[:-1]


def test_text_lines_end_at_line_feeds_only(tmp_path):
    (tmp_path / "a.txt").write_bytes("a\u2028b\x0cc\x85d\r\ne\rf\n\nNUL\x00\n".encode())
    texts, rejects = read_all(SourceConfig(path=str(tmp_path / "a.txt"), document="line"))
    assert texts == ["a\u2028b\x0cc\x85d", "e\rf", "NUL\x00"]
    assert rejects.by_reason() == {"empty": 1}


def test_a_text_file_is_one_document_to_the_last_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf  one\r\n\ttwo\x00\n\n")
    assert read_all(SourceConfig(path=str(tmp_path / "a.txt")))[0] == ["  one\r\n\ttwo\x00\n\n"]


def test_bad_records_are_counted_and_located_not_fatal(tmp_path):
    good = json_lines(["first", "last"]).splitlines()
    bad = [
        b'{"text": "cut off',
        b'{"text": "\xff\xfe"}',
        b'{"title": "no text"}',
        b'{"text": null}',
        b'{"text": 5}',
        b'{"text": ""}',
        b"[1, 2]",
        b"[" * 100_000,
        b'{"text": ' + b"9" * 5000 + b"}",
        b"",
        b"   ",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good[0], *bad, good[1]]))
    texts, rejects = read_all(SourceConfig(path=str(tmp_path / "a.jsonl")))
    assert texts == ["first", "last"]
    assert rejects.by_reason() == {"empty": 1, "invalid_utf8": 1, "malformed_json": 4, "missing_text": 3}
    assert rejects.examples["invalid_utf8"] == [f"{tmp_path / 'a.jsonl'} record 3"]


def test_raw_control_characters_within_json_strings_are_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\tb\x00c"}\n{"text": "\\u0000"}\n')
    assert read_all(SourceConfig(path=str(tmp_path / "a.jsonl")))[0] == ["a\tb\x00c", "\x00"]


def test_bad_values_of_a_parquet_column_are_counted(tmp_path):
    column = pa.array([b"good", None, b"\xff", b"", b"NUL\x00"], pa.binary())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    texts, rejects = read_all(SourceConfig(path=str(tmp_path / "a.parquet")))
    assert texts == ["good", "NUL\x00"]
    assert rejects.by_reason() == {"empty": 1, "invalid_utf8": 1, "missing_text": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "b.txt", "a.jsonl.gz"])
def test_a_record_beyond_all_bounds_is_dropped_without_being_held(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    raw = json_lines(["small", "x" * 5000, "small too"]) if "jsonl" in name else b"small\n" + b"x" * 5000 + b"\nend"
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    document = "file" if name == "b.txt" else "line"
    texts, rejects = read_all(SourceConfig(path=str(tmp_path / name), document=document))
    assert texts == {"a.txt": ["small", "end"], "b.txt": []}.get(name, ["small", "small too"])
    assert rejects.by_reason() == {"too_large": 1}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.zst"])
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_truncated_stream_is_one_sentence_with_the_file(tmp_path, stdlib_documents, name, kept):
    whole = compress(json_lines(stdlib_documents), "gzip" if name.endswith("gz") else "zstd")
    (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=rf"{name}: the \w+ stream is truncated or damaged .*; fetch the file again"):
        read_all(SourceConfig(path=str(tmp_path / name)))


def test_a_plain_file_called_gz_is_said_to_be_damaged(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(json_lines(["not compressed"]))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: the gzip stream is truncated or damaged"):
        read_all(SourceConfig(path=str(tmp_path / "a.jsonl.gz")))


def test_streams_of_several_members_are_read_to_the_end(tmp_path):
    for name, codec in (("a.jsonl.gz", "gzip"), ("a.jsonl.zst", "zstd")):
        parts = [compress(json_lines([text]), codec) for text in ("one", "two", "three")]
        (tmp_path / name).write_bytes(b"".join(parts))
        assert read_all(SourceConfig(path=str(tmp_path / name)))[0] == ["one", "two", "three"]


def test_parquet_that_is_none_or_lacks_the_column_is_one_sentence(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all, only text " * 10)
    with pytest.raises(ValueError, match=r"a\.parquet: not a readable parquet file"):
        read_all(SourceConfig(path=str(tmp_path / "a.parquet")))
    pq.write_table(pa.table({"body": ["text"], "size": [4]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: no column 'text' \(it has body, size\); set text_key"):
        read_all(SourceConfig(path=str(tmp_path / "b.parquet")))
    with pytest.raises(ValueError, match=r"b\.parquet: column 'size' is int64, not text"):
        read_all(SourceConfig(path=str(tmp_path / "b.parquet"), text_key="size"))
    cut = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(ValueError, match=r"c\.parquet: not a readable parquet file"):
        read_all(SourceConfig(path=str(tmp_path / "c.parquet")))


def test_globs_reach_into_folders_and_come_sorted(tmp_path):
    for name in ("b.jsonl", "a/c.jsonl", "a/d/e.jsonl", "a/skip.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(json_lines([name]))
    texts, _ = read_all(SourceConfig(path=str(tmp_path / "**" / "*.jsonl")))
    assert texts == ["a/c.jsonl", "a/d/e.jsonl", "b.jsonl"]


def test_a_name_with_brackets_is_a_name_where_it_exists(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(json_lines(["brackets"]))
    assert read_all(SourceConfig(path=str(tmp_path / "a[1].jsonl")))[0] == ["brackets"]


def test_fsspec_urls_are_read_like_paths(tmp_path):
    with fsspec.open("memory://corpus/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress(json_lines(["far", "away"])))
    with fsspec.open("memory://corpus/b.jsonl", "wb") as file:
        file.write(json_lines(["x" * 50 for _ in range(50)]))
    texts, _ = read_all(SourceConfig(path="memory://corpus/*.jsonl*"), unit_bytes=500)
    assert texts == ["far", "away", *["x" * 50] * 50]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing/*.jsonl", r"data\.sources\[0\]\.path: no file matches '.*missing/\*\.jsonl' \(looked in .*missing\)"),
        ("missing.jsonl", r"data\.sources\[0\]\.path: no file matches"),
        ("folder", r"data\.sources\[0\]\.path: '.*' is a folder; say which files in it, such as '.*/\*\*/\*\.jsonl'"),
        ("a.tar", r"a\.tar: \.tar files are not read as they are; unpack it"),
        ("a.jsonl.xz", r"a\.jsonl\.xz: \.xz files are not read as they are; recompress it as \.gz or \.zst"),
        ("a.json", r"a\.json: \.json files are not read as they are; set format: jsonl"),
        ("a.parquet.gz", r"a\.parquet\.gz: a parquet file compressed once more"),
    ],
)
def test_sources_that_cannot_be_read_say_what_to_do(tmp_path, path, words):
    (tmp_path / "folder").mkdir()
    for name in ("a.tar", "a.jsonl.xz", "a.json", "a.parquet.gz"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=words):
        list_files([SourceConfig(path=str(tmp_path / path))])


def test_unknown_protocols_and_missing_packages_are_one_sentence():
    with pytest.raises(ValueError, match=r"'nonsense://x' cannot be opened: .*; write a path or an fsspec URL"):
        list_files([SourceConfig(path="nonsense://x")])


class BrokenFile(io.BytesIO):
    """Breaks off with an exception that is no OSError."""

    def read(self, size=-1):
        raise RuntimeError("the connection\nwas lost")


class BrokenSystem(fsspec.AbstractFileSystem):
    """What a remote file system does on a bad day."""

    protocol = "broken"
    cachable = False

    def _open(self, path, *args, **options):
        if "closed" in path:
            raise RuntimeError("403 Forbidden")
        return BrokenFile(b'{"text": "words"}\n' * 100)

    def info(self, path, **options):
        if "hidden" in path:
            raise RuntimeError
        return {"name": path, "size": 1800, "type": "file"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "broken://hidden.jsonl",
            r"^data\.sources\[0\]\.path: 'broken://hidden.jsonl' cannot be listed: RuntimeError; check",
        ),
        ("broken://closed.jsonl", "^broken://closed.jsonl: cannot be read: 403 Forbidden; check the address"),
        ("broken://a.jsonl", "^broken://a.jsonl: cannot be read: the connection was lost; check the address"),
        ("broken://a.jsonl.gz", "^broken://a.jsonl.gz: cannot be read: the connection was lost; check the address"),
        ("broken://a.parquet", "^broken://a.parquet: cannot be read: the connection was lost; check the address"),
    ],
)
def test_whatever_a_remote_file_system_raises_is_one_sentence(url, words):
    fsspec.register_implementation("broken", BrokenSystem, clobber=True)
    with pytest.raises(ValueError, match=words) as caught:
        read_all(SourceConfig(path=url), unit_bytes=500)
    assert is_mistake(caught.value)


def test_a_chosen_format_overrules_the_name(tmp_path):
    (tmp_path / "a.json").write_bytes(json_lines(["by choice"]))
    assert read_all(SourceConfig(path=str(tmp_path / "a.json"), format="jsonl"))[0] == ["by choice"]


@given(weights=st.lists(st.integers(0, 100), max_size=30), task_bytes=st.integers(1, 150))
def test_tasks_hold_all_units_in_order_and_none_is_larger_than_it_must_be(weights, task_bytes):
    units = [sources.Unit(0, str(number), "text", None, weight) for number, weight in enumerate(weights)]
    tasks = group_tasks(units, task_bytes)
    assert [unit for task in tasks for unit in task] == units
    assert all(task and (len(task) == 1 or sum(unit.weight for unit in task) <= task_bytes) for task in tasks)
