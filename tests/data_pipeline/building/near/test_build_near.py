"""A build that leaves near copies and repeated lines out, by Ray, as a user has it."""

import json
from pathlib import Path

import pytest

from data_pipeline.building.build import build_dataset
from data_pipeline.config import DeduplicateConfig
from tests.data_pipeline.building.builds import digests, documents, settings, write_json_lines

NEAR = DeduplicateConfig(documents="near", lines="exact", alarm_share=0.2)
NOTICE = (
    "This very long notice stands at the foot of each and every page that we publish, and nobody reads it, ever again."
)
pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def texts(stdlib_documents):
    """Sources of 40 texts, of which some are like each other, and of 20 that are like those of the first."""
    originals = [text for text in stdlib_documents if 2000 < len(text) < 9000][:40]
    copies = [
        text.replace("return", "give", 1).replace("import", "bring", 1) + "\nthe end\n" for text in originals[:20]
    ]
    return originals, copies


@pytest.fixture(scope="module")
def built(texts, tokenizer_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("near")
    paths = [
        write_json_lines(folder / f"{name}.jsonl", [f"{text}\n{NOTICE}\n" for text in some])
        for name, some in zip("ab", texts, strict=True)
    ]
    config = settings(
        folder / "data", *paths, deduplicate=NEAR, shard_megabytes=0.02, validation_fraction=0, num_cpus=2
    )
    return config, build_dataset(config, tokenizer_config)


def test_one_of_each_is_kept_without_the_lines_of_others(built, texts, tokenizer):
    config, report = built
    found = [tokenizer.decode(ids) for ids in documents(config.path)]
    assert found[0] == f"{texts[0][0]}\n{NOTICE}\n"
    assert found[1:] == [f"{text}\n" for text in texts[0][1:]]
    counts = report.manifest.counts
    assert report.dropped == {"near_copy": 20}
    assert (counts["documents_read"], counts["documents_kept"]) == (60, 40)
    assert [source.counts.get("dropped_near_copy") for source in report.manifest.sources] == [None, 20]
    assert counts["repeated_lines_lines"] >= 39 and counts["repeated_lines_characters"] >= 39 * len(NOTICE)


def test_clusters_are_there_to_look_at_and_a_source_that_loses_much_is_told(built, texts, tokenizer_config):
    config, report = built
    clusters = [json.loads(line) for line in (Path(config.path) / "near_copies.jsonl").open()]
    assert len(clusters) == 20 and all(one["num_removed"] == len(one["removed"]) == 1 for one in clusters)
    for one in clusters:
        kept, removed = one["kept"], one["removed"][0]
        assert (kept["source"], removed["source"], removed["path"]) == (0, 1, config.sources[1].path)
        assert 0.8 <= removed["similarity"] < 1 and any(text.startswith(kept["beginning"]) for text in texts[0])
    [warning] = report.warnings
    assert warning.startswith("data.sources[1]: 20 of the 20 documents of")
    assert build_dataset(config, tokenizer_config).warnings == [warning]


@pytest.mark.parametrize("num_cpus", [1, 3])
def test_one_and_three_workers_write_the_bytes_of_two(built, tokenizer_config, tmp_path, num_cpus):
    config = built[0].model_copy(update={"path": str(tmp_path / "data"), "num_cpus": num_cpus})
    build_dataset(config, tokenizer_config)
    assert digests(config.path) == digests(built[0].path)
