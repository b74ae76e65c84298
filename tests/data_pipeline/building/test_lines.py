"""A long line stays where it is first and goes elsewhere; short lines and those of one document alone stay."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.building.clean import CleanBatch
from data_pipeline.building.lines import LINE_BYTES, RepeatedLines
from data_pipeline.building.passes import find_copies
from tests.data_pipeline.building.near.finding import in_process, job_of, left_of

LONG = [f"{letter} " * LINE_BYTES for letter in "abcdefgh"]
CHINESE = "这一行文字很长" * 5
LINES = st.lists(st.sampled_from([*LONG[:4], CHINESE, f"  {LONG[0]}\t", "short", ""]), max_size=6)


def without(folder, texts, **options):
    """Texts of each source without repeated lines."""
    job, tasks = job_of(folder, texts, {"documents": "none", "lines": "exact"}, **options)
    job = find_copies(job, tasks, in_process())
    found, counts = [], {}
    for index, some in enumerate(left_of(job, tasks)):
        lines = RepeatedLines(job.lines.of(index))
        keys = np.zeros((2, len(some)), np.uint64)
        batch, _ = lines.taken_out(CleanBatch(some, np.zeros(len(some), np.int64), keys), 0)
        found += batch.texts
        counts = {key: counts.get(key, 0) + count for key, count in lines.counts.items()}
    return found, counts


def plainly(texts):
    """The same, one line after another."""
    seen, found = set(), []
    for text in texts:
        lines = text.split("\n")
        found.append(
            "\n".join(line for line in lines if len(line.strip().encode()) < LINE_BYTES or line.strip() not in seen)
        )
        seen |= {line.strip() for line in lines}
    return [text for text in found if text]


@given(documents=st.lists(LINES, min_size=1, max_size=12))
def test_the_first_of_equal_lines_is_left(tmp_path_factory, documents):
    texts = ["\n".join(lines) or "x" for lines in documents]
    found, _ = without(tmp_path_factory.mktemp("lines"), [texts], shard_megabytes=0.0004)
    assert found == plainly(texts)


def test_lines_and_characters_are_counted(tmp_path):
    found, counts = without(tmp_path, [[f"one\n{LONG[0]}\n{LONG[0]}", f"two\n{LONG[0]}\nend\n{LONG[0]}", LONG[0]]])
    assert found == [f"one\n{LONG[0]}\n{LONG[0]}", "two\nend"]
    assert counts == {"lines": 3, "characters": 3 * len(LONG[0])}
