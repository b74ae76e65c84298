"""Whatever is removed really has a kept text that similar, however the work is cut, ordered and interrupted."""

import hashlib
import itertools
import os
import random
import signal

import numpy as np
import pytest

from data_pipeline.building import passes, tables
from data_pipeline.building.near import near_copies, sets
from tests.data_pipeline.building.near.finding import (
    deduplicated,
    in_process,
    job_of,
    similarity,
)

CHINESE = "".join(map(chr, range(0x4E00, 0x4E00 + 1500)))


def edited(text, share, seed, words=str.split, join=" "):
    """The text with a share of its words replaced by others of it."""
    drawn = random.Random(seed)
    parts = list(words(text)) if join == "" else words(text)
    for index in drawn.sample(range(len(parts)), round(share * len(parts))):
        parts[index] = parts[drawn.randrange(len(parts))] + ("" if join == "" else "s")
    return join.join(parts)


@pytest.fixture(scope="module")
def corpus(stdlib_documents):
    """Two sources: real text, and edits of a part of it, by one word in a hundred to one in five."""
    originals = [text for text in stdlib_documents if 1500 < len(text) < 6000][:30]
    drawn = random.Random(5)
    chinese = ["".join(drawn.choices(CHINESE, k=400)) for _ in range(8)]
    edits = [edited(text, share, number) for number, text in enumerate(originals[:15]) for share in (0.01, 0.03, 0.2)]
    edits += [edited(text, share, 1, list, "") for text in chinese for share in (0.01, 0.02, 0.2)]
    drawn.shuffle(edits)
    return [originals + chinese, edits]


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    return deduplicated(tmp_path_factory.mktemp("plain"), corpus)


def test_every_removed_document_is_similar_to_one_that_stays(corpus, plain):
    left, _ = plain
    removed = set(itertools.chain(*corpus)) - set(left)
    assert len(removed) > 20
    for text in removed:
        assert max(similarity(text, other) for other in left) >= 0.8


def test_hardly_any_two_that_stay_are_similar(plain):
    left, _ = plain
    pairs = [pair for pair in itertools.combinations(left, 2) if 0.8 < len(pair[0]) / len(pair[1]) < 1.25]
    assert sum(similarity(*pair) >= 0.8 for pair in pairs) <= 1


def test_what_is_not_similar_enough_stays(corpus, plain):
    left, _ = plain
    assert set(corpus[0]) <= set(left)
    heavy = [text for text in corpus[1] if max(similarity(text, other) for other in corpus[0]) < 0.7]
    assert len(heavy) > 15 and set(heavy) <= set(left)


def digests(job):
    """Hash of every file that says what is left out."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in job.work.iterdir()
        if path.name.startswith(("settled", "pair", "near"))
    }


def test_many_ranges_and_bundles_find_the_same(corpus, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RANGE_ROWS", 200)
    monkeypatch.setattr(passes, "COMPARED_BYTES", 40_000)
    monkeypatch.setattr(tables, "FEW_TASKS", 2)
    monkeypatch.setattr(sets, "AT_ONCE", 500)
    left, job = deduplicated(tmp_path, corpus)
    assert left == plain[0]
    assert job.near.bands_cut.num_ranges > 5 and job.near.bands_cut.num_bundles > 2 and job.near.num_comparisons > 3
    assert job.near.last_round > 0


@pytest.fixture
def in_bundles(corpus, tmp_path_factory, monkeypatch):
    """What a build with bundles and several ranges finds when nothing stops it."""
    monkeypatch.setattr(tables, "RANGE_ROWS", 1000)
    monkeypatch.setattr(tables, "FEW_TASKS", 2)
    return digests(deduplicated(tmp_path_factory.mktemp("once"), corpus, shard_megabytes=0.1)[1])


def test_a_range_opens_files_of_bundles_and_not_of_all_tasks(tmp_path, monkeypatch):
    num_tasks = 36
    several = sets.ShingleSets(tmp_path, tables.Cut(num_tasks, 20, 6))
    places = [np.uint64(task << 32) for task in range(num_tasks)]
    for task, place in enumerate(places):
        pairs = np.array([[place, better] for better in {place, places[task // 2]}], np.uint64)
        several.save(task, iter([(pairs, np.arange(task, task + 5, dtype=np.uint32))]))
    for index in range(6):
        several.bundle(index)
    opened = []
    load, memmap = np.load, np.memmap
    monkeypatch.setattr(np, "load", lambda path, **options: (opened.append(path), load(path, **options))[1])
    monkeypatch.setattr(sets, "_opened", lambda path: (opened.append(path), memmap(path, "<u4", "r"))[1])
    found = {(better, int(one)) for index in range(20) for better, _, ones, _ in several.groups(index) for one in ones}
    assert found == {(int(places[task // 2]), int(places[task])) for task in range(1, num_tasks)}
    assert len(opened) == 2 * 6 * 20


def test_any_order_and_a_stop_after_any_task_give_the_same_files(corpus, in_bundles, tmp_path):
    job, tasks = job_of(tmp_path, corpus, "near", shard_megabytes=0.1)
    drawn = random.Random(1)
    done = set()

    def stop_sometimes(stage, index):
        if (stage, index) not in done:
            done.add((stage, index))
            if drawn.random() < 0.5:
                raise KeyboardInterrupt

    run = in_process(lambda indices: drawn.sample(indices, len(indices)), stop_sometimes)
    while True:
        try:
            found = passes.find_copies(job, tasks, run)
            break
        except KeyboardInterrupt:
            continue
    assert len({stage for stage, _ in done}) == 14
    assert digests(found) == in_bundles


def test_kill_9_in_the_middle_of_each_pass_changes_nothing(corpus, in_bundles, tmp_path):
    job, tasks = job_of(tmp_path, corpus, "near", shard_megabytes=0.1)
    stages = []
    passes.find_copies(job, tasks, in_process(ran=lambda stage, index: stages.append(stage)))
    for path in job.work.iterdir():
        path.unlink()
    for name in dict.fromkeys(stages):

        def die(stage, index, name=name):
            if stage == name:
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if not child:
            try:
                passes.find_copies(job, tasks, in_process(ran=die))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert digests(passes.find_copies(job, tasks, in_process())) == in_bundles


def test_the_longest_is_kept_where_that_is_asked_for(corpus, tmp_path):
    originals = corpus[0][:10]
    longer = [f"{text}\nthe end" for text in originals]
    left, _ = deduplicated(tmp_path, [originals, longer], {"documents": "near", "keep": "longest"})
    assert left == longer
    (tmp_path / "first").mkdir()
    left, _ = deduplicated(tmp_path / "first", [originals, longer])
    assert left == originals


def test_what_the_limit_of_a_bucket_leaves_out_is_kept(corpus, plain, tmp_path, monkeypatch):
    everything = [text for texts in corpus for text in texts]
    monkeypatch.setattr(near_copies, "BUCKET_ROWS", 1)
    left, _ = deduplicated(tmp_path, [everything], shard_megabytes=10)
    assert left == everything
    assert len(plain[0]) < len(everything)
