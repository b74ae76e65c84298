"""How ranks end that something went wrong with: which of them tells, in what words, with what status."""

import shutil
import signal
import socket

from tests.training.runs import REPOSITORY, events_of, finish, save_config, start_ranks, tiny_config, wait_for_step
from training import worker
from training.events import EventLog
from training.plane import PeerLost
from training.state.folder import latest_checkpoint
from training.worker import EXIT_BROKEN, EXIT_MISTAKE, report

EXPLODING = {"lr": 1e3, "weight_decay": 1e3, "gradient_clipping": 0.0}
"""Every step multiplies matrices by a million."""


def test_a_rank_that_stands_still_ends_the_others_with_the_reason_in_words(dataset, tmp_path):
    config = tiny_config(dataset, training={"steps": 100_000, "hang_minutes": 0.4})
    folder = save_config(config, tmp_path / "run")
    ranks = start_ranks(folder, 2)
    wait_for_step(folder, 3, ranks)
    ranks[1].send_signal(signal.SIGSTOP)
    ranks[0].wait(timeout=240)
    ranks[1].kill()
    (code, error), _ = finish(ranks)
    assert code == EXIT_BROKEN
    (event,) = events_of(folder, "error")
    words = event["message"]
    assert words.startswith(f"rank 1 on node {socket.gethostname()} got nowhere for 0.4 minutes in phase step ")
    assert "it answers nothing" in words and f"{words}; " in error
    assert "in wait" in error or "all_reduce" in error or "in result" in error, "its stacks are above"
    assert (event["exit_code"], event["rank"], event["phase"]) == (EXIT_BROKEN, 1, "step")


def test_an_error_of_one_rank_in_loading_is_what_the_other_ends_with(dataset, tmp_path, monkeypatch):
    planted = {"PYTHONPATH": f"{REPOSITORY / 'benchmarks' / 'planted'}", "PLANTED_AT": f"{tmp_path / 'planted'}"}
    planted["PLANTED"] = "1 raising 1 training.first_weights put_weights"
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    folder = save_config(tiny_config(dataset), tmp_path / "run")
    (code, others), (own_code, own) = finish(start_ranks(folder, 2))
    words = f"RuntimeError: planted (rank 1 on node {socket.gethostname()}, in phase load)"
    assert code == own_code == EXIT_BROKEN
    assert others.strip().splitlines()[-1] == f"another rank broke: {words}"
    assert own.strip().splitlines()[-2:] == [
        "RuntimeError: planted",
        f"rank 1 on node {socket.gethostname()} broke in phase load",
    ]
    (event,) = events_of(folder, "error")
    assert (event["message"], event["rank"], event["phase"]) == (words, 1, "load")


def test_a_rank_that_lost_a_peer_lets_the_peer_tell_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(worker, "OTHERS_SPEAK_FIRST", 0.0)
    EventLog(tmp_path, 1).error("KeyError: 'x'", EXIT_BROKEN)
    assert report(PeerLost("rank 1 has left (sum 3)"), EventLog(tmp_path, 0)) == EXIT_BROKEN
    (event,) = events_of(tmp_path, "error")
    assert event["rank"] == 1
    assert capsys.readouterr().err.strip().endswith("another rank has left or hangs: rank 1 has left (sum 3)")


def test_of_many_ranks_that_lost_a_peer_one_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "OTHERS_SPEAK_FIRST", 0.0)
    for rank in (0, 1, 2):
        report(PeerLost(f"rank {rank + 1} has left (sum 3)"), EventLog(tmp_path, rank))
    (event,) = events_of(tmp_path, "error")
    assert event["message"] == "another rank has left or hangs: rank 1 has left (sum 3)"


def test_a_loss_that_is_no_number_is_a_mistake_which_no_restart_would_mend(dataset, tmp_path):
    config = tiny_config(dataset, optimizer=EXPLODING, schedule={"warmup_steps": 0})
    folder = save_config(config, tmp_path / "run")
    for code, error in finish(start_ranks(folder, 2)):
        assert code == EXIT_MISTAKE, error
        last = error.strip().splitlines()[-1]
        assert last.startswith("error: step ") and "Traceback" not in error
        assert "the loss is" in last or "the gradient is not finite" in last
    assert {event["exit_code"] for event in events_of(folder, "error")} == {EXIT_MISTAKE}
    assert latest_checkpoint(folder) is None


def test_a_shard_that_is_gone_ends_a_run_with_its_name(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "data")
    (tmp_path / "data" / "train-00000.bin").unlink()
    folder = save_config(tiny_config(tmp_path / "data"), tmp_path / "run")
    ends = finish(start_ranks(folder, 2))
    assert EXIT_MISTAKE in [code for code, _ in ends]
    for code, error in ends:
        assert "Traceback" not in error, error
        if code == EXIT_MISTAKE:
            assert "train-00000.bin: no such file" in error.strip().splitlines()[-1]
