"""Lines of JSON: nothing that a kill leaves behind stops a reader or costs a line that was whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.json_lines import NUMBER, Form, append_line, examine, read_last, read_lines

LINE = Form({"step": int}, {"loss": NUMBER, "evaluation": Form({"loss": NUMBER})})
HOSTILE = [
    b'{"loss": \xff, "step": 5}',
    b'{"step": null, "loss": null}',
    b'{"step": "5"}',
    b'{"step": true}',
    b'{"step": 5.5}',
    b'{"loss": 1.0}',
    b'{"step": 5, "loss": "low"}',
    b'{"step": 5, "loss": NaN}',
    b'{"step": 5, "loss": 1e999}',
    b'{"step": 5, "evaluation": 3}',
    b'{"step": 5, "evaluation": {"loss": null}}',
    b'{"step": 5, "lo',
    b"[1, 2]",
    b"3",
    b'{"step": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b"\x00" * 4096,
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: line[:20].decode(errors="replace"))
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_torn_or_strange_line_is_left_out_and_named_and_no_other_is_lost(tmp_path, line, position):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step}).encode() for step in (1, 2)]
    path.write_bytes(b"\n".join([*good[:position], line, *good[position:]]) + b"\n")
    found = examine(path, LINE)
    assert [record["step"] for record in found.records] == [1, 2]
    (sentence,) = found.left_out
    assert sentence.startswith(f"{path}: line {position + 1} is left out, for ")
    assert sentence.isprintable()
    assert read_last(path, LINE, "step").records == [{"step": 2}]


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=5))
def test_any_bytes_at_all_are_read_past(tmp_path_factory, noise):
    path = tmp_path_factory.getbasetemp() / "noise.jsonl"
    path.write_bytes(b"\n".join([b'{"step": 1}', *noise]))
    append_line(path, {"step": 2})
    steps = [record["step"] for record in read_lines(path, LINE)]
    assert (steps[0], steps[-1]) == (1, 2)


@pytest.mark.parametrize("kept", range(1, 12))
def test_what_is_appended_after_a_torn_line_is_not_lost_with_it(tmp_path, kept):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": 1}'[:kept])
    append_line(path, {"event": 2})
    append_line(path, {"event": 3})
    assert [record["event"] for record in read_lines(path)] == [2, 3]


def test_the_last_line_with_a_key_is_found_however_far_from_the_end_and_however_long(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(300):
        append_line(path, {"step": step, **({"loss": 1.0} if step == 7 else {}), "text": "x" * 5000})
    assert read_last(path, LINE, "loss").records[0]["step"] == 7
    assert read_last(path, LINE, "step").records[0]["step"] == 299
    assert read_last(path, LINE, "none").records == []
    assert read_last(tmp_path / "none", LINE, "step").records == []
