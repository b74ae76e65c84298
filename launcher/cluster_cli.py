"""Commands for clusters: submit, status, logs, cancel, nodes, practice-cluster."""

import dataclasses
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from common.mistakes import Mistake, cut
from launcher.console import aside, command, console, duration, number
from launcher.options import AsJson, ConfigFile, Overrides, RunFolder

nodes_app = typer.Typer(help="Nodes that failed: see also status --nodes.", no_args_is_help=True)
practice_app = typer.Typer(help="A real Slurm on this machine, to learn and to test on.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Gives the command line these commands."""
    for each in (submit, status, logs, cancel):
        app.command()(each)
    app.add_typer(nodes_app, name="nodes")
    app.add_typer(practice_app, name="practice-cluster")


def submit(
    config: ConfigFile,
    cluster: Annotated[str, typer.Option(metavar="PROFILE", help="Name of a profile, or path of one.")],
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    min_nodes: Annotated[
        int | None, typer.Option(min=1, help="Go on with as few as these when nodes are missing; all if empty.")
    ] = None,
    wait: Annotated[
        str, typer.Option("--wait-for-nodes", metavar="TIME", help="How long a start with fewer waits for more first.")
    ] = "5m",
    limit: Annotated[
        str | None, typer.Option("--time", help="Time limit, as 24h or 2-12:00:00; the profile's if empty.")
    ] = None,
    chain: Annotated[int, typer.Option(min=1, help="Jobs in a row; each goes on where the last one stopped.")] = 1,
    singleton: Annotated[
        bool, typer.Option("--singleton", help="Jobs wait for all others of the run; more may be added at any time.")
    ] = False,
    after: Annotated[int | None, typer.Option(metavar="JOB", help="Begin when this job has ended.")] = None,
    stage: Annotated[str, typer.Option(help="train, or data: build the dataset on the nodes, then train.")] = "train",
    only_data: Annotated[bool, typer.Option("--only-data", help="With --stage data: do not train after it.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="First prove on the job's ranks that they train as a plain loop does.")
    ] = False,
    include_lemons: Annotated[
        bool, typer.Option("--include-lemons", help="Take nodes too that failed too often; see status --nodes.")
    ] = False,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the job file and submit nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submits a run to a Slurm cluster, after looking at what would fail there an hour later.

    Example: [bold]shardline submit books.yaml --cluster plain --nodes 4 --time 24:00:00[/]
    """
    from launcher import submit as submission
    from launcher.config import load_to_start

    if stage not in ("train", "data"):
        raise Mistake(f"--stage {cut(stage)}: not a stage; allowed: train, data")
    if only_data and stage != "data":
        raise Mistake("--only-data: goes with --stage data; add it or leave this out")
    if verify and only_data:
        raise Mistake("--verify: goes with training, and --only-data trains nothing; leave one of the two out")
    loaded = load_to_start(config, overrides or [])
    elastic: dict[str, Any] = {"min_nodes": min_nodes, "wait": wait}
    kinds: dict[str, Any] = {"singleton": singleton, "include_lemons": include_lemons}
    request = submission.Request(cluster, nodes, limit, chain, after, stage, only_data, verify, **elastic, **kinds)
    if dry_run:
        for text in submission.scripts(loaded, request).values():
            typer.echo(text, nl=False)
        problems = submission.problems(loaded, request)
        for problem in problems:
            typer.echo(f"would be refused: {problem}", err=True)
        if not problems and (doubt := submission.doubt(loaded, request)):
            typer.echo(f"warning: {doubt}", err=True)
        return
    with aside(as_json):
        for change in submission.changes(loaded):
            console.print(f"  config changed since the last start: {change}", soft_wrap=True, markup=False)
        done = submission.submit(loaded, request)
        if doubt := submission.doubt(loaded, request):
            console.print(f"[bold yellow]warning[/]: {escape(doubt)}", soft_wrap=True)
        for notice in done.notices:
            console.print(f"[bold yellow]nodes[/]: {escape(notice)}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps({"run": str(done.run_dir), "jobs": done.jobs}, indent=2))
        return
    for record in done.jobs:
        console.print(f"job {record['job']} ({record['stage']}): log {record['log']}", soft_wrap=True, markup=False)
    console.print("\nNext:")
    for words in (("status", done.run_dir, "--watch"), ("logs", done.run_dir, "--follow"), ("cancel", done.run_dir)):
        console.print(f"  {command(*words)}", soft_wrap=True, markup=False)


def status(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run folder; all of --runs if empty.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every few seconds until it is over.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Pause between looks with --watch.")] = 5.0,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Show which nodes failed how often, and are left out.")
    ] = False,
    cluster: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="With --nodes: of this profile; that of the run if empty.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Shows how runs on a cluster fare: in the queue and why, or step, loss, speed, time left and last checkpoint.

    Example: [bold]shardline status runs/quickstart --watch[/]
    """
    from launcher import status as states

    if nodes:
        _show_nodes(cluster or states.cluster_of([run] if run else states.runs_below(runs)), as_json)
        return
    while True:
        found = [states.status(folder) for folder in ([run] if run else states.runs_below(runs))]
        if as_json:
            facts = [dataclasses.asdict(each) for each in found]
            typer.echo(json.dumps(facts[0] if run else facts, indent=None if watch else 2))
        else:
            if watch and console.is_terminal:
                console.clear()
            _show(found, runs)
        over = all(each.state in ("finished", "stopped", "broken", "lost", "not submitted") for each in found)
        if not watch or over:
            return
        time.sleep(seconds)


def _show(found: list, runs: Path) -> None:
    from launcher import views
    from launcher.status import when

    if not found:
        console.print(f"{runs}: no run was submitted from here; name a run's folder", markup=False, soft_wrap=True)
    colours = {"running": "green", "finished": "green", "broken": "red", "lost": "red", "stopped": "yellow"}
    for each in found:
        colour = colours.get(each.state, "cyan")
        console.print(f"[bold]{escape(each.run)}[/]  [{colour}]{each.state}[/]  {escape(each.detail)}", soft_wrap=True)
        rows = [
            ("job", f"{each.job} ({each.stage}), restarted {each.restarts} times" if each.job else ""),
            ("nodes", each.nodes),
            ("starts", when(each.expected_start) if each.expected_start else ""),
            ("then", ", ".join(map(str, each.waiting))),
            ("step", f"{each.step} of {each.steps}" if each.step else ""),
            ("loss", f"{each.loss:.4f}" if each.loss is not None else ""),
            ("speed", f"{number(each.tokens_per_second)} tokens/s" if each.tokens_per_second else ""),
            ("MFU", f"{each.mfu:.1%}" if each.mfu else ""),
            ("left", duration(each.seconds_left) if each.state == "running" and each.seconds_left is not None else ""),
            ("slowest", each.slowest),
            ("slow", "; ".join(each.slow)),
            ("epochs of sources", ", ".join(f"{name} {epochs:.2f}" for name, epochs in each.sources.items())),
            ("goodput", views.goodput(each.goodput) if each.goodput else ""),
            ("checkpoint", f"{each.checkpoint}, {duration(each.checkpoint_age)} ago" if each.checkpoint else ""),
            ("left out", "; ".join(each.excluded)),
            ("passed over", "; ".join(each.skipped)),
            ("not read", "; ".join(each.left_out)),
        ]
        table = Table(box=None, show_header=False, padding=(0, 2))
        for name, value in rows:
            if value:
                table.add_row(name, escape(value))
        console.print(table)


def _show_nodes(cluster: str, as_json: bool) -> None:
    from launcher import nodes as memory
    from launcher.profiles import load_profile
    from launcher.status import when

    profile = load_profile(cluster)
    file, rule = memory.nodes_file(cluster, profile), profile.lemons
    found, left_out = memory.read_nodes(file, rule)
    if as_json:
        facts = [dataclasses.asdict(node) for node in found]
        typer.echo(json.dumps({"file": str(file), "nodes": facts, "left_out": left_out}, indent=2))
        return
    table = Table("node", "failed", "points", "last", "why", "left out until", box=None, padding=(0, 2))
    for node in found:
        last, until = node.failures[-1], node.until
        times = [when(datetime.fromtimestamp(moment).isoformat()) if moment else "" for moment in (last.time, until)]
        table.add_row(*map(escape, (node.name, node.in_words, str(node.points), times[0], last.why, times[1])))
    console.print(table if found else f"no node has failed in the last {rule.days:g} days", markup=False)
    for sentence in left_out:
        console.print(f"not read: {sentence}", soft_wrap=True, markup=False)
    console.print(f"{rule.points} points in {rule.days:g} days leave a node out; {file}", soft_wrap=True, markup=False)


@nodes_app.command("forget")
def forget_nodes(
    names: Annotated[list[str], typer.Argument(metavar="NODE...", help="Nodes, as node1.")],
    cluster: Annotated[str, typer.Option(metavar="PROFILE", help="Name of a profile, or path of one.")],
) -> None:
    """Makes nodes as good as new, as after a repair: submit leaves them out no more.

    Example: [bold]shardline nodes forget node17 --cluster plain[/]
    """
    from launcher import nodes as memory
    from launcher.profiles import load_profile

    file = memory.nodes_file(cluster, load_profile(cluster))
    if unknown := set(names) - memory.known_names(file):
        raise Mistake(
            f"{sorted(unknown)[0]}: {file} knows no failure of it; see which it does with 'shardline status --nodes'"
        )
    memory.forget(file, names)
    console.print(f"forgotten: {', '.join(names)}", soft_wrap=True, markup=False)


def logs(
    run: RunFolder,
    rank: Annotated[int | None, typer.Option(min=0, help="Show this rank's log; the job's if empty.")] = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines to begin with.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as the log grows, until ctrl-C.")] = False,
) -> None:
    """Shows the log of a run's job, or of one of its ranks.

    Example: [bold]shardline logs runs/quickstart --rank 3 --follow[/]
    """
    path = _log(run, rank)
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - lines * 400))
        text = file.read().decode(errors="replace")
        typer.echo("".join(text.splitlines(keepends=True)[-lines:]), nl=False)
        try:
            while follow:
                typer.echo(file.read().decode(errors="replace"), nl=False)
                time.sleep(0.5)
        except KeyboardInterrupt:
            return


def _log(run: Path, rank: int | None) -> Path:
    if rank is not None:
        path = run / "logs" / f"rank-{rank}.log"
        if not path.exists():
            ranks = sorted(int(found.stem[5:]) for found in run.glob("logs/rank-*.log"))
            there = f"ranks 0 to {ranks[-1]} have one" if ranks else "no rank has started yet"
            raise Mistake(f"{path}: no such log; {there}")
        return path
    found = sorted((run / "slurm").glob("*-*.log"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise Mistake(f"{run / 'slurm'}: no job of this run has started yet; look with 'shardline status {run}'")
    return found[-1]


def cancel(
    run: RunFolder,
    save: Annotated[bool, typer.Option("--save", help="Let the run save first: it ends after its step.")] = False,
) -> None:
    """Ends the jobs of a run, running and waiting.

    Example: [bold]shardline cancel runs/quickstart --save[/]
    """
    from launcher.run_folder import RunFolder
    from launcher.slurm_commands import Slurm

    records = RunFolder.read(run).jobs
    if not records:
        raise Mistake(f"{run}: no job of it was ever submitted; name a folder such as runs/quickstart")
    slurm = Slurm(records[-1].get("commands"))
    alive = [job for job in slurm.jobs([record["job"] for record in records[-64:]]).values() if not job.is_over]
    (run / "slurm" / "cancel").touch()  # the job looks there before it starts itself again
    running = [job.id for job in alive if job.state == "RUNNING"] if save else []
    slurm.cancel([job.id for job in alive if job.id not in running])
    for job_id in running:
        slurm.ask_to_save(job_id)
        console.print(f"job {job_id} saves and ends; look with: shardline status {run}", soft_wrap=True, markup=False)
    ended = [job.id for job in alive if job.id not in running]
    if ended or not running:
        console.print(
            f"ended {', '.join(map(str, ended))}" if ended else f"{run}: nothing to end", markup=False, soft_wrap=True
        )


@practice_app.command("up")
def practice_up(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Number of nodes.")] = 2,
    share: Annotated[list[Path] | None, typer.Option(help="Folder below /tmp that all nodes shall see.")] = None,
) -> None:
    """Starts the practice cluster; needs neither root nor ports of this machine.

    Example: [bold]shardline practice-cluster up --nodes 3[/]
    """
    from launcher import practice

    if code := practice.up(nodes, share or []):
        raise typer.Exit(code)
    console.print(f"Slurm's own commands: export PATH={practice.commands()}:$PATH", soft_wrap=True, markup=False)
    words = "shardline submit configs/quickstart.yaml --cluster practice --nodes 2 --set training.micro_batch_size=4"
    console.print(
        f"Next, once 'shardline quickstart' has made its data:\n  {words} --set name=practice", soft_wrap=True
    )


@practice_app.command("down")
def practice_down() -> None:
    """Ends the practice cluster with all its jobs.

    Example: [bold]shardline practice-cluster down[/]
    """
    _pass_on("down")


@practice_app.command("status")
def practice_status() -> None:
    """Shows nodes and queue; exit code 0 when every node is up.

    Example: [bold]shardline practice-cluster status[/]
    """
    _pass_on("status")


@practice_app.command("node")
def practice_node(
    action: Annotated[str, typer.Argument(help="off, on, crash, cut, heal, stop-slurmd or start-slurmd.")],
    name: Annotated[str, typer.Argument(help="Node, as node1.")],
) -> None:
    """Breaks a node, or mends it: power, cable, daemon.

    Example: [bold]shardline practice-cluster node off node1[/]
    """
    actions = ("off", "on", "crash", "cut", "heal", "stop-slurmd", "start-slurmd")
    if action not in actions:
        raise Mistake(f"{action}: not something to do to a node; allowed: {', '.join(actions)}")
    _pass_on("node", action, name)


def _pass_on(*words: str) -> None:
    from launcher import practice

    if code := practice.call(words):
        raise typer.Exit(code)
