import csv
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
from data_pipeline.building import compressed, sources
from data_pipeline.building.formats import lines, tables
from data_pipeline.building.local_files import local_files
from data_pipeline.building.source_files import list_files
from data_pipeline.building.sources import group_tasks, plan_units
from data_pipeline.config import DataConfig, SourceConfig
from tests.data_pipeline.building.reads import read_all


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
    words=st.lists(st.text(alphabet="ab\u2028\x0c\x85\r\x00 \u4e2d", max_size=12), max_size=20),
    last=st.booleans(),
    unit_bytes=st.integers(1, 60),
)
def test_every_cut_keeps_lines_whole_and_in_order(tmp_path_factory, words, last, unit_bytes):
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    raw = "\n".join(words) + ("\n" if last else "")
    path.write_bytes(raw.encode())
    texts, _ = read_all(SourceConfig(path=str(path), document="line"), unit_bytes)
    assert texts == [line for line in (line.removesuffix("\r") for line in raw.split("\n")) if line]


@given(block=st.integers(1, 40))
def test_lines_do_not_depend_on_the_blocks_they_are_read_in(tmp_path_factory, block):
    raw = "one\n\ntwo two two two two two two\r\nthree\n\u4e2d\u6587\n".encode()
    blocks = (raw[start : start + block] for start in range(0, len(raw), block))
    assert list(lines.split_lines(blocks)) == raw.split(b"\n")[:-1]


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
    monkeypatch.setattr(lines, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(compressed, "BLOCK_BYTES", 64)
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


# ---- tables, nested fields, links, endings


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_a_column_of_a_table_is_read_whatever_is_in_it(tmp_path, stdlib_documents, name, mark):
    texts = [*stdlib_documents[:30], 'quoted "words", commas,\ttabs\nand lines\r\n', "NUL \x00", "\u4e2d\u6587"]
    table = io.StringIO()
    writer = csv.writer(table, delimiter=mark, lineterminator="\n")
    writer.writerows([["id", "text"], *enumerate(texts)])
    raw = b"\xef\xbb\xbf" + table.getvalue().encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    found, rejects = read_all(SourceConfig(path=str(tmp_path / name)), unit_bytes=1000)
    assert found == texts
    assert not rejects.counts


def test_bad_rows_of_a_table_are_counted(tmp_path, monkeypatch):
    raw = (
        b'id,text\n1,good\n2\n3,too,many\n\n4,\n5,"a"b\n6,\xff\n7,"two\nlines"\n8,'
        + b"x" * 5000
        + b'\n9,last\n10,"open\n'
    )
    (tmp_path / "a.csv").write_bytes(raw)
    monkeypatch.setattr(lines, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(tables, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(compressed, "BLOCK_BYTES", 64)
    found, rejects = read_all(SourceConfig(path=str(tmp_path / "a.csv")))
    assert found == ["good", "two\nlines", "last"]
    assert rejects.by_reason() == {"empty": 1, "invalid_utf8": 1, "malformed_csv": 5}
    assert rejects.examples["invalid_utf8"] == [f"{tmp_path / 'a.csv'} record 7"]


def test_a_table_without_the_column_is_one_sentence(tmp_path):
    (tmp_path / "a.csv").write_text("title,body\n1,2\n")
    with pytest.raises(
        ValueError, match=r"a\.csv: no column 'text' \(it has title, body\); set text_key of its source"
    ):
        read_all(SourceConfig(path=str(tmp_path / "a.csv")))


def test_fields_within_fields_are_read(tmp_path):
    records = [
        {"meta": {"text": "one"}},
        {"meta": {"text": None}},
        {"meta": None},
        {"meta.text": "by its own name"},
        {},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found, rejects = read_all(SourceConfig(path=str(tmp_path / "a.jsonl"), text_key="meta.text"))
    assert found == ["one", "by its own name"]
    assert rejects.by_reason() == {"missing_text": 3}
    rows = [
        {"text": "one", "deep": {"er": "x"}},
        {"text": None, "deep": {"er": "y"}},
        None,
        {"text": "two", "deep": None},
    ]
    pq.write_table(pa.table({"id": range(4), "meta": rows}), tmp_path / "b.parquet", row_group_size=2)
    found, rejects = read_all(SourceConfig(path=str(tmp_path / "b.parquet"), text_key="meta.text"), unit_bytes=10)
    assert found == ["one", "two"]
    assert rejects.by_reason() == {"missing_text": 2}
    assert read_all(SourceConfig(path=str(tmp_path / "b.parquet"), text_key="meta.deep.er"))[0] == ["x", "y"]
    with pytest.raises(ValueError, match=r"no column 'meta\.none' \(it has id, meta\)"):
        read_all(SourceConfig(path=str(tmp_path / "b.parquet"), text_key="meta.none"))


@pytest.fixture
def linked(tmp_path):
    """1,000 documents, 950 of them behind links as in a cache of Hugging Face: blobs without endings, snapshots."""
    cache = tmp_path / "cache"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number in range(50):
        (cache / "snapshots" / "abc" / f"{number:03d}.jsonl").write_bytes(json_lines([f"plain {number}"]))
    for number in range(450):
        (cache / "blobs" / f"{number:064x}").write_bytes(json_lines([f"blob {number}"]))
        (cache / "snapshots" / "abc" / f"b{number:03d}.jsonl").symlink_to(f"../../blobs/{number:064x}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number in range(500):
        (elsewhere / f"{number:03d}.jsonl").write_bytes(json_lines([f"folder {number}"]))
    (cache / "snapshots" / "more").symlink_to(elsewhere)
    return cache


def test_links_to_files_and_folders_are_followed(linked):
    texts, _ = read_all(SourceConfig(path=str(linked / "**" / "*.jsonl")))
    kinds = ("plain", 50), ("blob", 450), ("folder", 500)
    assert sorted(texts) == sorted(f"{kind} {number}" for kind, count in kinds for number in range(count))
    assert len(read_all(SourceConfig(path=str(linked / "snapshots" / "more" / "*.jsonl")))[0]) == 500
    assert len(read_all(SourceConfig(path=str(linked / "snapshots" / "*" / "*.jsonl")))[0]) == 1000


def test_links_that_lead_nowhere_or_round_are_named(linked):
    everything = SourceConfig(path=str(linked / "**" / "*.jsonl"))
    dangling = linked / "snapshots" / "abc" / "gone.jsonl"
    dangling.symlink_to("../../blobs/none")
    for source in (everything, SourceConfig(path=str(dangling))):
        with pytest.raises(
            ValueError, match=r"gone\.jsonl: this link points to \.\./\.\./blobs/none, which is not there"
        ):
            list_files([source])
    dangling.unlink()
    (linked / "snapshots" / "round").symlink_to("..")
    with pytest.raises(ValueError, match=r"snapshots/round: this link leads back to .*cache, which it lies in; remove"):
        list_files([everything])
    assert len(list_files([SourceConfig(path=str(linked / "snapshots" / "abc" / "*.jsonl"))])) == 500


@pytest.mark.parametrize(
    "pattern", ["*", "**", "*/*.jsonl", "**/*.jsonl", "a/**/*.jsonl", "[ab]/?.jsonl", "a/**", "*/d/*"]
)
def test_patterns_mean_what_they_mean_elsewhere(tmp_path, pattern):
    for name in ("b.jsonl", "a/c.jsonl", "a/d/e.jsonl", "b/f.jsonl", "a/.hidden.jsonl", "a/skip.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    path = str(tmp_path / pattern)
    elsewhere = fsspec.filesystem("file").glob(path, detail=True)
    assert sorted(local_files(path)) == sorted(name for name, info in elsewhere.items() if info["type"] == "file")


@pytest.mark.parametrize("name", ["a.jsonlines", "a.jl", "a.jsonl.1", "a.jsonl.12.gz", "a.JSONL", "a.jsonl.gz.2"])
def test_other_endings_of_json_lines_are_known(tmp_path, name):
    raw = json_lines(["one", "two"])
    (tmp_path / name).write_bytes(gzip.compress(raw) if "gz" in name else raw)
    assert read_all(SourceConfig(path=str(tmp_path / name)))[0] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "part-00000",
            r"part-00000: a name without an ending tells no format; set format of data\.sources\[0\] to jsonl,",
        ),
        ("part-00000.gz", r"part-00000\.gz: a name without an ending tells no format"),
        ("a.dat", r"a\.dat: \.dat is no ending that is known; set format .* or make its path match fewer files"),
    ],
)
def test_an_unknown_ending_is_refused_until_its_format_is_set(tmp_path, name, words):
    raw = json_lines(["by choice"])
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    with pytest.raises(ValueError, match=words):
        list_files([SourceConfig(path=str(tmp_path / name))])
    assert read_all(SourceConfig(path=str(tmp_path / name), format="jsonl"))[0] == ["by choice"]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.rst", "a.html", "a.tex", "a.txt.zst", "a.C"])
def test_known_endings_of_text_are_text(tmp_path, name):
    (tmp_path / name).write_bytes(compress(b"words", "zstd") if name.endswith("zst") else b"words")
    assert read_all(SourceConfig(path=str(tmp_path / name)))[0] == ["words"]


def test_a_zstd_window_too_large_to_read_is_named_for_what_it_is(tmp_path):
    # the head of a frame whose window is 2 GiB, as 'zstd --long=31' writes from a pipe; of 128 MiB in the second
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"x" * 100)
    with pytest.raises(
        ValueError, match=r"its zstd window is 2048 MiB and 128 can be read; recompress it with --long=27"
    ):
        read_all(SourceConfig(path=str(tmp_path / "a.jsonl.zst")))
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([17 << 3]) + b"x" * 100)
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_all(SourceConfig(path=str(tmp_path / "a.jsonl.zst")))


def test_a_chosen_format_overrules_the_name(tmp_path):
    (tmp_path / "a.json").write_bytes(json_lines(["by choice"]))
    assert read_all(SourceConfig(path=str(tmp_path / "a.json"), format="jsonl"))[0] == ["by choice"]


@given(weights=st.lists(st.integers(0, 100), max_size=30), task_bytes=st.integers(1, 150))
def test_tasks_hold_all_units_in_order_and_none_is_larger_than_it_must_be(weights, task_bytes):
    units = [sources.Unit(0, str(number), "text", None, weight) for number, weight in enumerate(weights)]
    tasks = group_tasks(units, task_bytes)
    assert [unit for task in tasks for unit in task] == units
    assert all(task and (len(task) == 1 or sum(unit.weight for unit in task) <= task_bytes) for task in tasks)


@given(weights=st.lists(st.integers(0, 100), max_size=30), num_first=st.integers(0, 30))
def test_no_task_holds_units_of_two_sources(weights, num_first):
    units = [sources.Unit(int(n >= num_first), str(n), "text", None, weight) for n, weight in enumerate(weights)]
    tasks = group_tasks(units, 100)
    assert [unit for task in tasks for unit in task] == units
    assert all(len({unit.source for unit in task}) == 1 for task in tasks)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("corpus/**/*.jsonl.zst", "corpus"),
        ("data/wiki.2024.jsonl", "wiki"),
        ("s3://bucket/part-*.parquet", "bucket"),
        ("/tmp/my notes/*.txt", "my-notes"),
        ("*.txt", "source"),
        ("../../x/?.txt", "x"),
    ],
)
def test_a_source_is_named_by_the_last_part_of_its_path_that_is_no_pattern(path, name):
    assert DataConfig(path="data", sources=[SourceConfig(path=path)]).source_names == [name]


def test_names_of_sources_differ():
    paths = ["a/*.txt", "b/a.jsonl", "a-2.txt"]
    named = DataConfig(path="d", sources=[SourceConfig(path=path) for path in paths])
    assert named.source_names == ["a", "a-2", "a-2-2"]
    taken = [SourceConfig(path="a/*.txt"), SourceConfig(path="b", name="a")]
    assert DataConfig(path="d", sources=taken).source_names == ["a-2", "a"]
    with pytest.raises(ValueError, match="sources: two are named 'x'; names are to differ"):
        DataConfig(path="d", sources=[SourceConfig(path="a", name="x"), SourceConfig(path="b", name="x")])
