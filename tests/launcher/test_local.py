"""Starting ranks on this machine, and telling how it went."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from data_pipeline.building.build import build_dataset
from data_pipeline.config import DataConfig, SourceConfig
from launcher.config import check_config
from launcher.console import Broken, Stopped
from launcher.local import train_locally
from launcher.ranks import ending, tell
from launcher.run_folder import RunFolder, last_step


@pytest.fixture(scope="module")
def dataset(ray_session, tokenizer_config, corpus_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("local") / "dataset"
    config = DataConfig(path=str(path), sources=[SourceConfig(path=str(corpus_file))], validation_fraction=0.05)
    build_dataset(config, tokenizer_config)
    return path


def maker(dataset, tokenizer_config, runs_dir):
    """A function that gives the config of a run in `runs_dir`, with further keys of training."""

    def make(**training):
        tree = {
            "name": "local",
            "runs_dir": str(runs_dir),
            "tokenizer": tokenizer_config.model_dump(),
            "data": {"path": str(dataset)},
            "model": {"num_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64},
            "training": {
                "steps": 4,
                "sequence_length": 32,
                "global_batch_size": 4,
                "precision": "fp32",
                "num_processes": 2,
                **training,
            },
            "checkpoint": {"interval_steps": 2},
            "evaluation": {"num_samples": 8},
        }
        return check_config(tree, "test")

    return make


@pytest.fixture
def config(dataset, tokenizer_config, tmp_path):
    return maker(dataset, tokenizer_config, tmp_path / "runs")


@pytest.fixture(scope="module")
def done(dataset, tokenizer_config, tmp_path_factory):
    """The config of a run at its last step, and what its start gave; for tests that leave the run as it is."""
    make = maker(dataset, tokenizer_config, tmp_path_factory.mktemp("done"))
    return make, train_locally(make())


def when_step(run_dir, step, action):
    """Does `action` once the run has logged `step`."""

    def wait():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and last_step(run_dir).get("step", 0) < step:
            time.sleep(0.02)
        assert last_step(run_dir).get("step", 0) >= step, "the run did not get that far in time"
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def processes_of(run_dir, module="training.worker"):
    command = re.compile(rf"-m\0{re.escape(module)}\0(.*\0)?{re.escape(str(run_dir))}\0".encode(), re.DOTALL)
    return [
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if command.search(read_quietly(path))
    ]


def read_quietly(path):
    with contextlib.suppress(OSError):  # the process ended while we were looking
        return path.read_bytes()
    return b""


def test_a_run_goes_to_its_last_step_and_is_not_trained_twice(done):
    config, first = done
    assert first.last["step"] == 4
    assert first.evaluation["step"] == 4
    assert not first.already_finished
    assert train_locally(config()).already_finished


def test_files_of_the_user_named_as_our_rooms_do_no_harm_and_nothing_stays_in_the_temporary_folder(
    config, tmp_path, monkeypatch
):
    here, temporary = tmp_path / "here", tmp_path / "t"
    here.mkdir()
    temporary.mkdir()
    for name in ("model", "training", "launcher", "data_pipeline", "common", "torch", "numpy"):
        (here / f"{name}.py").write_text(f"raise SystemExit('the user has a {name}.py')\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert train_locally(config()).last["step"] == 4
    left = [path.name for path in temporary.iterdir()]
    assert [name for name in left if not name.startswith("torchinductor_")] == []  # torch's cache, one for each user


def test_fresh_refuses_a_run_that_exists(done):
    config, _ = done
    with pytest.raises(ValueError, match="this run exists and --fresh was given"):
        train_locally(config(), fresh=True)


def test_a_change_that_the_checkpoint_refuses_leaves_the_run_s_config_as_it_was(done):
    trained = done[0]()
    before = (trained.run_dir / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="num_layers 1, this run has 3"):
        train_locally(trained.model_copy(update={"model": trained.model.model_copy(update={"num_layers": 3})}))
    assert (trained.run_dir / "config.yaml").read_bytes() == before


def test_a_start_tells_of_itself_alone_and_a_run_past_its_last_step_says_so(done):
    config, _ = done
    known = {event["attempt"] for event in RunFolder.read(config().run_dir).events}
    refused = config().model_copy(update={"seed": 5})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"order\.seed"):
            train_locally(refused)
    with pytest.raises(ValueError, match=r"training\.steps: 3, but the run stands at step 4 already") as caught:
        train_locally(config(steps=3))
    assert "seed" not in str(caught.value)
    assert "training.steps=4" not in str(caught.value)
    events = RunFolder.read(config().run_dir).events
    assert len({event["attempt"] for event in events if event["event"] == "error"} - known) == 3


def test_torn_metrics_and_a_strange_diary_stop_no_start_and_what_is_missing_is_said(config, capsys):
    run_dir = train_locally(config()).run_dir
    metrics, events = run_dir / "metrics.jsonl", run_dir / "events.jsonl"
    whole = metrics.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(whole) if b'"grad_norm"' in line)
    torn = whole[last][: len(whole[last]) // 2]
    metrics.write_bytes(b"".join(whole[:last]) + b'{"loss": \xff, "step": 4}\n{"step": null, "loss": null}\n' + torn)
    with events.open("ab") as file:
        file.write(b'{"event": "save", "time": "noon"}\n{"event": "sa')
    assert train_locally(config(steps=6)).last["step"] == 6
    said = capsys.readouterr().out
    assert "its time is text" in said and "it has no figures of step 4, which an earlier start trained" in said
    assert said.count("is left out, for its step is empty") == 1
    lost = [event["reason"] for event in RunFolder.read(run_dir).events if event["event"] == "metrics lost"]
    assert f"{metrics}: it has no figures of step 4, which an earlier start trained" in lost
    assert len(lost) == 4
    with pytest.raises(ValueError, match="model") as caught:
        train_locally(config(steps=7).model_copy(update={"model": config().model.model_copy(update={"d_ff": 32})}))
    assert "\n" not in str(caught.value)


def test_whoever_watches_is_told_what_this_start_went_on_without_and_nothing_of_others(tmp_path, capsys):
    events = [{"event": event, "attempt": "now", "reason": f"{event}!"} for event in ("damaged", "unlisted", "save")]
    events.append({"event": "damaged", "attempt": "before", "reason": "of another start"})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    tell(tmp_path, "now")
    assert capsys.readouterr().out == "  damaged!\n  unlisted!\n"


def test_a_mistake_that_only_the_ranks_can_see_comes_back_as_their_sentence(config):
    with pytest.raises(ValueError, match="a global batch needs 100000") as caught:
        train_locally(config(global_batch_size=100_000, micro_batch_size=1))
    assert "\n" not in str(caught.value)


def test_a_killed_rank_is_named_as_such_and_the_next_start_goes_on(config):
    long = config(steps=2000)
    killer = when_step(long.run_dir, 5, lambda: os.kill(processes_of(long.run_dir)[-1], signal.SIGKILL))
    with pytest.raises(Broken, match="killed by SIGKILL"):
        train_locally(long)
    killer.join()
    reached = last_step(long.run_dir)["step"]
    result = train_locally(config(steps=reached + 3))
    assert result.last["step"] == reached + 3
    steps = [json.loads(line)["step"] for line in (long.run_dir / "metrics.jsonl").open() if '"grad_norm"' in line]
    assert steps == list(range(1, reached + 4))
    spent = RunFolder.read(long.run_dir).goodput(time.time())
    (interruption,) = spent.interruptions
    assert "left without a word" in interruption.cause and interruption.seconds > interruption.lost > 0
    assert sum(spent.seconds.values()) == pytest.approx(spent.wall)
    assert spent.seconds["steps"] > 0 and set(spent.starting) == {"ranks", "preparing", "first step"}


def test_a_second_launch_of_a_run_is_refused_while_the_first_goes_on(config):
    long = config(steps=2000)
    refused = []

    def launch_again():
        try:
            train_locally(long)
        except ValueError as error:
            refused.append(str(error))
        os.kill(processes_of(long.run_dir)[0], signal.SIGTERM)

    second = when_step(long.run_dir, 2, launch_again)
    with pytest.raises(Stopped):
        train_locally(long)
    second.join()
    assert len(refused) == 1
    assert "is training this run already" in refused[0]


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)])
def test_a_signal_or_several_at_once_save_a_checkpoint_and_leave_no_process(config, tmp_path, numbers):
    long = config(steps=2000)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(long.model_dump(mode="json")))
    command = [sys.executable, "-m", "launcher.cli", "train", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    when_step(long.run_dir, 3, lambda: [process.send_signal(number) for number in numbers]).join()
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 75
    assert printed == "stopped with a checkpoint; the same command goes on from it\n"
    events = [json.loads(line) for line in (long.run_dir / "events.jsonl").open()]
    assert events[-1]["event"] == "stop"
    assert (long.run_dir / "checkpoints" / f"step-{events[-1]['step']:08d}" / "state.json").is_file()
    assert processes_of(long.run_dir) == []


def test_a_killed_launch_takes_its_ranks_along_and_loses_no_step(config, tmp_path):
    long = config(steps=2000)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(long.model_dump(mode="json")))
    process = subprocess.Popen([sys.executable, "-m", "launcher.cli", "train", str(file)], stdout=subprocess.PIPE)
    when_step(long.run_dir, 3, process.kill).join()
    process.communicate(timeout=180)
    deadline = time.monotonic() + 60
    while processes_of(long.run_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(long.run_dir) == []
    events = [json.loads(line) for line in (long.run_dir / "events.jsonl").open()]
    assert events[-1]["event"] == "stop"
    assert events[-1]["step"] == last_step(long.run_dir)["step"]


def test_torchs_launcher_is_named_when_it_is_killed_and_its_ranks_save(config):
    long = config(steps=2000)
    killer = when_step(long.run_dir, 3, lambda: os.kill(processes_of(long.run_dir, "torch.distributed.run")[0], 9))
    with pytest.raises((Broken, Stopped)) as ended:
        train_locally(long)
    killer.join()
    said = "broke: torch's launcher was killed by SIGKILL, at which the ranks save and end"
    assert said in str(ended.value) or str(ended.value).startswith("stopped with a checkpoint")  # ranks that were quick
    deadline = time.monotonic() + 60
    while processes_of(long.run_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(long.run_dir) == []
    assert RunFolder.read(long.run_dir).events[-1]["event"] == "stop"


TRACE = """Timeout (0:00:30)!
Thread 0x00007f1 (most recent call first):
  File "torch/distributed/distributed_c10d.py", line 3021 in all_reduce
  File "<frozen runpy>", line 88 in _run_code
"""
LAUNCHED = """Root Cause (first observed failure):
  exitcode  : {code} (pid: 77)
  error_file: <N/A>
  traceback : Signal {code} ({name}) received by PID 77
"""


@pytest.mark.parametrize(("step", "words"), [(0, "before the first step"), (7, "with a checkpoint")])
def test_a_signal_before_the_first_step_promises_no_checkpoint(tmp_path, step, words):
    error = ending([{"event": "stop", "step": step}], tmp_path, {}, 75, asked=True)
    assert isinstance(error, Stopped) and words in str(error)


@pytest.mark.parametrize(
    ("log", "launch", "code", "events", "words"),
    [
        (TRACE, "", 1, [], "a rank waited too long for another, which was stopped"),
        (
            "",
            LAUNCHED.format(code=-9, name="SIGKILL"),
            1,
            [{"event": "error", "exit_code": 1, "message": "RuntimeError: Timed out waiting 30000ms for recv"}],
            "a rank waited too long for another, which was stopped",
        ),
        (
            "PeerLost: rank 3 on node gpu-3 did not answer in time (stop)",
            "",
            1,
            [],
            "waited too long for rank 3 on node gpu-3, which",
        ),
        (
            TRACE + "rank 0 on node n got nowhere for 0.5 minutes in phase step 4; where this rank was is above",
            LAUNCHED.format(code=-9, name="SIGKILL"),
            1,
            [],
            "broke: rank 0 on node n got nowhere for 0.5 minutes in phase step 4; the ranks' logs are in",
        ),
        (
            "another rank has left or hangs: rank 1 on node n has not come within 20 s: 1 of 2",
            "",
            1,
            [],
            "broke: rank 1 on node n has not come within 20 s: 1 of 2; the ranks' logs are in",
        ),
        ("RuntimeError: x", "  exitcode  : -9 (pid: 77)\n  (SIGKILL)", 1, [], "a rank was killed by SIGKILL"),
        ("", "", -9, [], "torch's launcher was killed by SIGKILL"),
        ("Traceback\nKeyError: 'x'\n", "", 1, [], "training broke: KeyError: 'x'"),
        ("", "", 7, [], "exit code 7"),
    ],
)
def test_an_end_is_told_in_words_and_never_by_what_an_earlier_start_said(tmp_path, log, launch, code, events, words):
    before = "error: an earlier mistake\nTimeout (0:00:30)!\n"
    (tmp_path / "rank-0.log").write_text(before + log)
    (tmp_path / "launch.log").write_text(launch)
    error = ending(events, tmp_path, {tmp_path / "rank-0.log": len(before)}, code, asked=False)
    assert isinstance(error, Broken)
    assert words in str(error)
    assert "frozen" not in str(error)
