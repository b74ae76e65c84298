"""How a run stands, whatever a kill left in its folder; and its config, from wherever one asks."""

import json
import shutil
import typing

import pytest
import yaml
from pydantic import BaseModel

from common.json_lines import append_line
from common.mistakes import Mistake
from common.section import Place
from launcher import console, places
from launcher.config import check_config, load_config, load_to_start
from launcher.run_folder import RunFolder, existing, keep_config, last_step, metrics_of
from launcher.status import status
from tests.launcher.test_config import MINIMAL
from training.config import RunConfig

STEP = {"loss": 2.5, "tokens_per_second": 10.0, "step_seconds": 2.0, "time": 1.0}
GOOD = [{"step": 1, **STEP}, {"step": 1, "evaluation": {"loss": 2.0, "unigram_entropy": 3.0}}, {"step": 2, **STEP}]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that was started in tmp_path with a config of relative paths, and has done two steps."""
    monkeypatch.chdir(tmp_path)
    config = check_config(MINIMAL, "test")
    folder = tmp_path / config.run_dir
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
    keep_config(config)
    (folder / "checkpoints" / "latest").write_text("step-00000002\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in GOOD))
    (folder / "events.jsonl").write_text('{"time": 1.0, "event": "evaluate"}\n')
    return folder


def test_one_value_says_how_a_run_stands(run):
    stands = RunFolder.read(run)
    assert stands.config.name == "tiny"
    assert (stands.step, stands.checkpoint.name) == (2, "step-00000002")
    assert (stands.last["step"], stands.evaluation["step"], stands.evaluation["loss"]) == (2, 1, 2.0)
    assert (stands.jobs, stands.left_out) == ([], [])
    assert [event["event"] for event in stands.events] == ["evaluate"]


def test_a_folder_without_a_run_is_empty_or_refused(tmp_path):
    nothing = RunFolder.read(tmp_path)
    assert (nothing.config, nothing.checkpoint, nothing.last, nothing.events) == (None, None, {}, [])
    with pytest.raises(Mistake, match=r"no config\.yaml in it, so it is not a run"):
        existing(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"loss": \xff, "step": 5}',
        b'{"step": null, "loss": null}',
        b'{"step": 3, "loss": null}',
        b'{"step": 3, "loss": 1.0}',
        b'{"step": 3, "evaluation": {"loss": "x"}}',
        b'{"event": "error", "time": "noon"}',
        b'{"event": 3, "job": "x"}',
        b'{"job": "x", "stage": null}',
        b"\x00\xff\x00",
    ],
)
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "slurm/jobs.jsonl"])
def test_a_torn_or_strange_line_is_left_out_and_said_and_changes_nothing(run, name, line):
    before = RunFolder.read(run)
    (run / "slurm").mkdir()
    with (run / name).open("ab") as file:
        file.write(line)
    after = RunFolder.read(run)
    assert (after.last, after.evaluation, after.events, after.jobs) == (
        before.last,
        before.evaluation,
        before.events,
        before.jobs,
    )
    assert [sentence.split(": ")[0] for sentence in after.left_out] == [str(run / name)]
    assert last_step(run)["step"] == 2
    assert len(metrics_of(run)) == 3
    assert status(run).left_out == tuple(after.left_out)


@pytest.mark.parametrize("content", [b"", b"step-00000009\n", b"\xff\x00", b"../../..\n"])
def test_a_pointer_to_nothing_leaves_the_newest_checkpoint(run, content):
    (run / "checkpoints" / "latest").write_bytes(content)
    (run / "checkpoints" / ".tmp-file").touch()
    assert RunFolder.read(run).step == 2
    (run / "checkpoints" / "latest").unlink()
    (run / "checkpoints" / "latest").mkdir()
    assert RunFolder.read(run).step == 2


def test_steps_that_were_passed_over_are_named_once_and_only_the_last(run):
    for step in (1, 2, 3, 3, 4):
        append_line(run / "events.jsonl", {"event": "skip", "step": step, "reason": "the loss is nan (rank 1)"})
    append_line(run / "events.jsonl", {"event": "roll_back", "before": 3, "samples": 64, "step": 4})
    assert status(run).skipped == (
        "step 3: the loss is nan (rank 1)",
        "step 4: the loss is nan (rank 1)",
        "went back before step 3, on with sample 64",
    )


def test_a_line_whose_loss_is_no_number_is_read(run):
    append_line(run / "metrics.jsonl", last_step(run) | {"step": 3, "loss": None, "skipped": 1})
    assert (last_step(run)["step"], status(run).loss) == (3, None)
    assert console.loss(last_step(run)["loss"]) == "no number (passed over)"


# ---- from wherever one asks


def test_every_key_of_a_config_that_holds_a_path_is_known():
    def parts(annotation):
        yield annotation
        for argument in typing.get_args(annotation) if annotation != Place else ():
            yield from parts(argument)

    def walk(section: type[BaseModel], prefix: str = ""):
        for name, field in section.model_fields.items():
            kinds = list(parts(field.annotation))
            if field.metadata == list(Place.__metadata__) or Place in kinds:
                yield prefix + name
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    many = typing.get_origin(field.annotation) is list
                    yield from walk(kind, f"{prefix}{name}.{'*.' if many else ''}")

    assert set(walk(RunConfig)) == set(places.KEYS)


def test_what_a_run_keeps_means_the_same_from_every_working_folder(run, tmp_path, monkeypatch):
    kept = load_config(run / "config.yaml")
    monkeypatch.chdir("/")
    assert load_config(run / "config.yaml") == kept
    assert kept.run_dir == run
    assert (kept.tokenizer.path, kept.data.path) == (f"{tmp_path}/tok", f"{tmp_path}/data")
    assert kept.data.sources[0].path == f"{tmp_path}/a.jsonl"


def test_a_relative_config_of_an_earlier_version_means_the_same_from_every_working_folder(run, tmp_path, monkeypatch):
    (run / "config.yaml").write_text(yaml.safe_dump(MINIMAL))
    monkeypatch.chdir("/")
    found = load_config(run / "config.yaml", ["training.initial_weights=here"])
    assert (found.run_dir, found.tokenizer.path) == (run, f"{tmp_path}/tok")
    assert found.training.initial_weights == "here", "what is typed now starts from where one stands now"


def test_patterns_and_urls_are_kept_as_what_they_are(tmp_path):
    base = tmp_path / "a[1]"
    sources = [{"path": "x/*.jsonl"}, {"path": "x.jsonl"}, {"path": "s3://bucket/*.jsonl"}, {"path": "/abs"}]
    moved = places.anchored({"data": {"sources": sources}}, base)
    assert [source["path"] for source in moved["data"]["sources"]] == [
        f"{tmp_path}/a[[]1]/x/*.jsonl",
        f"{base}/x.jsonl",
        "s3://bucket/*.jsonl",
        "/abs",
    ]


def test_brackets_are_wildcards_in_sources_alone_and_not_in_names_of_files_that_are_there(tmp_path):
    base = tmp_path / "a[1]"
    base.mkdir()
    (base / "x[2].jsonl").touch()
    moved = places.anchored({"data": {"path": "d[3]", "sources": [{"path": "x[2].jsonl"}]}}, base)
    assert moved == {"data": {"path": f"{base}/d[3]", "sources": [{"path": f"{base}/x[2].jsonl"}]}}


def test_lists_of_files_start_from_the_base_too(tmp_path):
    filters = ["c4", {"name": "decontaminate", "files": ["q[1].jsonl", "/abs", 3]}]
    moved = places.anchored({"data": {"filters": filters}}, tmp_path)
    assert moved["data"]["filters"] == ["c4", {"name": "decontaminate", "files": [f"{tmp_path}/q[1].jsonl", "/abs", 3]}]


@pytest.mark.parametrize("tree", [{}, {"data": 3}, {"data": {"sources": [None, 3, {"path": None}]}}, {"runs_dir": ""}])
def test_a_tree_that_is_no_config_yet_passes_unchanged(tree, tmp_path):
    assert places.anchored(tree, tmp_path) == tree


def test_a_renamed_run_is_not_begun_anew(run, tmp_path):
    moved = run.rename(run.with_name("moved"))
    with pytest.raises(
        Mistake, match=f"its config says {run}, .*to go on with the one in {moved} add --set name=moved,"
    ):
        load_to_start(moved / "config.yaml")
    assert load_to_start(moved / "config.yaml", ["name=moved"]).run_dir == moved


def test_a_moved_tree_is_told_how_to_go_on(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run.parent, elsewhere)
    with pytest.raises(Mistake, match=f"add --set runs_dir={elsewhere},"):
        load_to_start(elsewhere / "tiny" / "config.yaml")
    assert load_to_start(elsewhere / "tiny" / "config.yaml", [f"runs_dir={elsewhere}"]).run_dir == elsewhere / "tiny"


def test_the_config_of_a_run_may_begin_another_one_by_name(run):
    assert load_to_start(run / "config.yaml", ["name=longer"]).run_dir == run.with_name("longer")
    assert load_to_start(run / "config.yaml").run_dir == run


def test_what_other_machines_wrote_of_a_run_stands_in_its_diary_in_order(run):
    (run / "events").mkdir()
    (run / "events" / "7.0.jsonl").write_text(
        '{"time": 0.5, "event": "job_start"}\n{"time": 2.0, "event": "job_end"}\n'
    )
    assert [event["event"] for event in RunFolder.read(run).events] == ["job_start", "evaluate", "job_end"]


def test_a_config_of_that_name_among_other_files_is_a_config_like_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(MINIMAL))
    config = load_to_start("config.yaml")
    assert (str(config.run_dir), config.data.path) == ("runs/tiny", "data")
