"""`shardline verify`: real ranks against a plain loop, for the way a config trains or for all ways there are.

config -> made small, on random documents -> ranks of the real engine -> a plain loop in this process -> findings
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from common.mistakes import Mistake
from common.ports import free_port
from launcher.console import USER_MISTAKE, Broken, StageProgress, console
from launcher.local_rank import PYTHON, end_with_parent

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.verify.verdict import Verdict

POLL_SECONDS = 0.2


def default_ranks(config: "RunConfig | None") -> int:
    """As many as the config has, two at least and four at most, and no more than there are GPUs where there are any.

    Where some share layers or rows, four, so that others read other samples.
    """
    import torch

    least = 4 if config and config.parallel.num_sharing > 1 else 2
    wanted = min(max(config.training.num_processes if config else 2, least), 4)
    return min(wanted, torch.cuda.device_count()) if torch.cuda.is_available() else wanted


def cases_of(
    config: Path | None, overrides: Sequence[str], *, grid: bool
) -> "Callable[[int], Mapping[str, RunConfig]]":
    """What to verify by name, for a number of ranks. ValueError when it is not clear what."""
    from launcher.config import load_config
    from training.verify.grid import grid as all_ways

    if grid == (config is not None):
        raise Mistake("verify: name a config to verify its way of training, or give --grid for all ways, not both")
    if config is None:
        if overrides:
            raise Mistake("--set: --grid has no config whose keys could be set; leave it out")
        return lambda num_ranks: dict(all_ways(num_ranks))
    loaded = load_config(config, overrides)
    return lambda num_ranks: {loaded.name: loaded}


def verify(cases: "Mapping[str, RunConfig]", num_ranks: int) -> "list[Verdict]":
    """Trains every case twice, small, and compares.

    Raises ValueError with the ranks' own sentence when they refuse a case, Broken when they died.
    """
    from training.verify.small import small, write_documents

    with tempfile.TemporaryDirectory(prefix="shardline-verify-") as place:
        data = Path(place) / "data"
        configs = {name: small(config, data, num_ranks) for name, config in cases.items()}
        manifest = write_documents(data, max(config.training.global_batch_size for config in configs.values()))
        folders = {name: Path(place) / f"case-{number}" for number, name in enumerate(configs)}
        for name, folder in folders.items():
            folder.mkdir()
            (folder / "config.yaml").write_text(yaml.safe_dump(configs[name].model_dump(mode="json")))
        _train(Path(place), data, list(folders.values()), num_ranks)
        return _verdicts(configs, folders, manifest, num_ranks)


def _train(place: Path, data: Path, folders: list[Path], num_ranks: int) -> None:
    """Runs all cases on ranks of this machine."""
    port = free_port()
    command = [*PYTHON, "-m", "training.verify.ranks", str(data), *map(str, folders)]
    ranks, logs = [], [place / f"rank-{rank}.log" for rank in range(num_ranks)]
    with contextlib.ExitStack() as stack, StageProgress("starting ranks") as progress:
        for rank, log in enumerate(logs):
            place_of: dict[str, Any] = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": num_ranks,
                "LOCAL_WORLD_SIZE": num_ranks,
            }
            place_of |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = os.environ | {name: str(value) for name, value in place_of.items()}
            output = stack.enter_context(log.open("wb"))
            how = {"stdout": output, "stderr": subprocess.STDOUT, "env": environment}
            ranks.append(subprocess.Popen(command, preexec_fn=end_with_parent, **how))  # type: ignore[call-overload]
            stack.callback(ranks[-1].kill)
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            done = sum((folder / "lines.json").exists() for folder in folders)
            progress.update(done, len(folders), "", title="real ranks")
            time.sleep(POLL_SECONDS)
        for number, rank in enumerate(ranks):
            if rank.poll():
                _raise(number, rank.returncode, logs[number])


def _raise(rank: int, code: int, log: Path) -> None:
    lines = log.read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    if code == USER_MISTAKE:
        raise Mistake(last.removeprefix("error: "))
    text = "\n".join(lines[-30:])
    raise Broken(f"rank {rank} ended with {code}; its last words:\n{text}")


def _verdicts(
    configs: "Mapping[str, RunConfig]", folders: Mapping[str, Path], manifest: Any, num_ranks: int
) -> "list[Verdict]":
    import torch

    from training.verify.verdict import Judge

    torch.set_num_threads(1)
    judge = Judge(manifest, num_ranks, "cuda" if torch.cuda.is_available() else "cpu")
    verdicts = []
    with StageProgress("the plain loop") as progress:
        for number, (name, config) in enumerate(configs.items()):
            progress.update(number, len(configs), "", title="plain loop")
            verdicts.append(judge.of(name, config, folders[name]))
    return verdicts


def show(verdicts: "list[Verdict]") -> None:
    """One case: every comparison. Several: the worst of each, as a share of what is allowed."""
    if len(verdicts) == 1:
        console.print(_comparisons(verdicts[0]))
    else:
        console.print(_overview(verdicts))
    faulty = [verdict for verdict in verdicts if not verdict.holds]
    for verdict in faulty if len(verdicts) > 1 else ():
        console.print(_comparisons(verdict))
    if faulty:
        console.print(f"[bold red]{len(faulty)} of {len(verdicts)} do not hold[/]")
    else:
        console.print(f"{'it holds' if len(verdicts) == 1 else f'all {len(verdicts)} hold'}")


def _comparisons(verdict: "Verdict") -> Table:
    facts = ", ".join(f"{name} {value}" for name, value in verdict.facts.items())
    table = Table(title=f"{verdict.name}\n{facts}", title_justify="left")
    for name in ("what", "largest difference", "allowed", "where", ""):
        numbers = name in ("largest difference", "allowed")
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for each in verdict.findings:
        mark = "holds" if each.holds else "[bold red]DIFFERS[/]"
        table.add_row(each.what, f"{each.worst:.2g}", f"{each.allowed:.2g}", each.where, mark)
    return table


def _overview(verdicts: "list[Verdict]") -> Table:
    table = Table(title="ranks against a plain loop", title_justify="left")
    for name in ("way to train", "nearest to its limit", "share of it", ""):
        table.add_column(name, justify="right" if name == "share of it" else "left")
    for verdict in verdicts:
        nearest = verdict.worst
        mark = "holds" if verdict.holds else "[bold red]DIFFERS[/]"
        table.add_row(verdict.name, nearest.what, f"{nearest.worst / nearest.allowed:.2g}", mark)
    return table
