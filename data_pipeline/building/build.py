"""Builds a dataset with Ray Data; the only module that imports Ray.

    sources -> plan of tasks -> hash_task ...      a row of Ray Data is a task, its result a row of facts
                             -> find_copies        (passes.py: what is to be left out)
                             -> tokenize_task ...  one train and one validation shard per task
            -> build.json (the settings) -> manifest.json, written last

Where a finished dataset lacks nothing but later sources, the tasks are those of these sources (see growing).

What is built depends on the sources and the settings alone, not on the number of workers or on interruptions: tasks
are cut before any worker is asked, each writes files of its own, and a task that is done already is left alone.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.mistakes import Mistake, is_mistake
from data_pipeline.building import folder as build_folder
from data_pipeline.building.growing import Base, added_files, find_base
from data_pipeline.building.near.report import alarms
from data_pipeline.building.passes import Task, find_copies
from data_pipeline.building.sources import MAX_EXAMPLES, Unit, group_tasks, plan_units, refuse_tokens
from data_pipeline.building.tasks import EncoderDiffers, Job, Stopped, tokenize_task, write_json
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.filters.chain import make_steps, save_tables, with_absolute_files
from data_pipeline.manifest import FILE_NAME, Manifest, dropped_of
from data_pipeline.tokenizer import FAST_ENCODER, Tokenizer

STARTS = 4
"""How often Ray is started on a machine so busy that it gives itself up: it waits half a minute for its own parts."""
SLOW_START = "timed out during startup"
OBJECT_STORE_BYTES = 96 << 20
"""Shared memory of Ray on this machine; only plans and facts of tasks go through it."""


@dataclasses.dataclass(frozen=True)
class BuildProgress:
    """Where a build is."""

    stage: str
    """What is being done, in words."""
    done: int
    """Tasks of this stage that are finished."""
    total: int
    """Tasks of this stage."""
    documents: int = 0
    """Documents finished in this stage."""
    tokens: int = 0
    """Tokens written in this stage."""


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    manifest: Manifest
    """What lies in data.path now."""
    reused: bool
    """True when it was there already, built with the same settings."""
    seconds: float
    """Time taken."""
    num_resumed: int = 0
    """Tasks that an interrupted build had finished."""
    encoder: str = ""
    """Name of the encoder; of both where the build was interrupted and went on with `fast_encoder` changed."""
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Where the first dropped records are, by reason."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """What to look at before the dataset is trained on."""

    @property
    def dropped(self) -> dict[str, int]:
        """Records dropped, by reason."""
        return dropped_of(self.manifest.counts)


def build_dataset(
    config: DataConfig,
    tokenizer: TokenizerConfig,
    progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport:
    """Builds the dataset of a config, goes on with one that was interrupted, adds sources to it, or finds it built.

    Raises ValueError when the folder holds a dataset of other settings or a source cannot be read, OSError when the
    disk is full; what is there then is no dataset yet, and the same call goes on with it.
    """
    started = time.monotonic()
    say = progress or (lambda state: None)
    loaded = Tokenizer.load(tokenizer, "off")
    settings = build_folder.decisive_settings(config, loaded)
    folder = Path(config.path).absolute()
    config = _with_path(config, folder).model_copy(update={"filters": with_absolute_files(config.filters)})
    tokenizer = _with_path(tokenizer, Path(tokenizer.path).absolute())
    base = find_base(config, settings)
    if base is None and (folder / FILE_NAME).exists():
        manifest = build_folder.reuse(config, loaded, settings)
        return BuildReport(manifest, True, time.monotonic() - started, warnings=alarms(config, manifest.sources))
    if not config.sources:
        raise Mistake(f"data.sources: is empty and {folder} holds no dataset; name the files to build it from")
    make_steps(config.filters)  # what is wrong with them is to be said before anything is read or written
    say(BuildProgress("listing files", 0, 1))
    task_bytes = max(round(config.shard_megabytes * 1e6), 1)
    files = added_files(config, base)
    if config.filters:
        refuse_tokens(files)
    plan = build_folder.plan_fingerprint(settings, files, *_of_base(base))
    units = build_folder.planned_units(folder, plan) or plan_units(files, config.sources, task_bytes)
    tasks = group_tasks(units, task_bytes)
    job = Job(config, tokenizer, loaded.fingerprint, plan, len(tasks))
    if base:
        job = dataclasses.replace(job, first_task=base.num_tasks, known_keys=tuple(base.keys))
    with build_folder.work_folder(job):
        build_folder.remember_units(job, units)
        save_tables(config.filters, job.work)
        with ray_session(config, say):
            results = _run_passes(job, tasks, say, base.num_keys(folder) if base else 0)
        manifest = build_folder.finish(job, loaded, settings, files, results, base)
    return BuildReport(
        manifest,
        False,
        time.monotonic() - started,
        num_resumed=sum(result["resumed"] for result in results),
        encoder=" and ".join(sorted({result["encoder"] for result in results})),
        examples=_merge_examples(results),
        warnings=alarms(config, manifest.sources),
    )


def _of_base(base: Base | None) -> list[str]:
    """What the plan of a build that adds to a dataset depends on besides."""
    return [base.manifest.config_fingerprint, base.manifest.fingerprint] if base else []


def _with_path(config, path: Path):
    """The section with an absolute path, for workers that run in other folders."""
    return config.model_copy(update={"path": str(path)})


def _merge_examples(results: list[dict[str, Any]]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = {}
    for result in results:
        for reason, examples in result["examples"].items():
            merged[reason] = (merged.get(reason, []) + examples)[:MAX_EXAMPLES]
    return merged


# ---- passes over the tasks


def _run_passes(
    job: Job, tasks: list[list[Unit]], say: Callable[[BuildProgress], None], num_known: int
) -> list[dict[str, Any]]:
    """Facts of all tasks; num_known documents are in the dataset that they add to."""

    def run(stage: str, task: Task, job: Job, tasks: Sequence[Sequence[Unit]]) -> list[dict[str, Any]]:
        return _run(stage, task, job, tasks, say)

    job = find_copies(job, tasks, run, num_known)
    if not job.verdict_file.exists():
        try:
            return run("tokenizing", tokenize_task, job, tasks)
        except EncoderDiffers:
            write_json(job.verdict_file, {"differs": FAST_ENCODER})
            job.stop_file.unlink(missing_ok=True)
    job = dataclasses.replace(job, reference_only=True)
    return run("tokenizing with the original library", tokenize_task, job, tasks)


def _run(
    stage: str, task: Task, job: Job, tasks: Sequence[Sequence[Unit]], say: Callable[[BuildProgress], None]
) -> list[dict[str, Any]]:
    """Results of all tasks in their order; raises what the first failed one of them raised.

    EncoderDiffers comes before any other, since all is to be done again then.
    """
    import ray.data

    items = [
        {"index": index, "units": json.dumps([dataclasses.asdict(unit) for unit in units])}
        for index, units in enumerate(tasks)
    ]
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        functools.partial(_run_block, task=task, job=job),
        batch_size=None,
        batch_format="pyarrow",
        concurrency=min(job.data.num_cpus, len(items)) if job.data.num_cpus else None,
    )
    results: list[dict[str, Any]] = [{}] * len(items)
    failures: dict[int, dict[str, Any]] = {}
    done = documents = tokens = 0
    say(BuildProgress(stage, 0, len(items)))
    for row in rows.iter_rows():
        result = json.loads(row["result"])
        if "error" in result:
            failures[row["index"]] = result
            _stop_others(job)
            continue
        results[row["index"]] = result
        done += 1
        shards = result.get("shards", {}).values()
        documents += result.get("documents", 0) + sum(shard["num_documents"] for shard in shards)
        tokens += sum(shard["num_tokens"] for shard in shards)
        say(BuildProgress(stage, done, len(items), documents, tokens))
    if any(failure["error"] == "encoder" for failure in failures.values()):
        raise EncoderDiffers
    if failures:
        raise _as_exception(next(failure for _, failure in sorted(failures.items()) if failure["error"] != "stopped"))
    return results


def _stop_others(job: Job) -> None:
    # on a full disk the others fail by themselves
    with contextlib.suppress(OSError):
        job.stop_file.touch()


def _run_block(rows, task: Task, job: Job):
    """Runs the tasks of a block (arrow table in and out), on a worker."""
    import pyarrow as pa

    indices = rows.column("index").to_pylist()
    results = []
    for index, text in zip(indices, rows.column("units").to_pylist(), strict=True):
        units = [Unit(**unit) for unit in json.loads(text)]
        results.append(json.dumps(_run_guarded(task, job, index, units)))
    return pa.table({"index": indices, "result": results})


def _run_guarded(task: Task, job: Job, index: int, units: Sequence[Unit]) -> dict[str, Any]:
    """A task's result, or what went wrong in words that outlive the worker; bugs stay exceptions."""
    try:
        if job.stop_file.exists():
            raise Stopped
        return task(job, index, units)
    except Stopped:
        return {"error": "stopped"}
    except EncoderDiffers:
        return {"error": "encoder"}
    except OSError as error:
        where = error.filename or str(job.folder)
        return {"error": "os", "number": error.errno, "text": error.strerror or str(error), "file": where}
    except ValueError as error:
        if not is_mistake(error):
            raise
        return {"error": "value", "text": str(error)}


def _as_exception(failure: dict[str, Any]) -> Exception:
    if failure["error"] == "value":
        return Mistake(failure["text"])
    if failure["number"] is None:
        return OSError(failure["text"])
    return OSError(failure["number"], failure["text"], failure["file"])


# ---- Ray itself


@contextlib.contextmanager
def ray_session(config: DataConfig, say: Callable[[BuildProgress], None]) -> Iterator[None]:
    """Ray while the build lasts: the session of this process if it has one, else one of our own or of a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if config.ray_address == "local":
        _use_private_token()
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            say(BuildProgress("starting Ray", 0, 1))
            stack.enter_context(_connected(config))
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield


@contextlib.contextmanager
def _connected(config: DataConfig) -> Iterator[None]:
    import ray
    from ray.job_config import JobConfig

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    # a job of Ray's client is the one kind whose workers do not import from the working folder, where users have files
    # of any name
    common["job_config"] = JobConfig(_client_job=True)
    if config.ray_address != "local":
        _join_cluster(config.ray_address, common)
        try:
            yield
        finally:
            ray.shutdown()
        return
    with contextlib.ExitStack() as stack:
        for tries_left in reversed(range(STARTS)):
            folder = stack.enter_context(_temporary_folder(_short_folder()))
            try:
                ray.init(
                    address="local",
                    num_cpus=config.num_cpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=folder,
                    **common,
                )
                break
            except Exception as error:  # Ray has no narrower one for this
                if not tries_left or SLOW_START not in str(error):
                    raise
                ray.shutdown()
        stack.callback(ray.shutdown)
        yield


def _join_cluster(address: str, common: dict[str, Any]) -> None:
    import ray

    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():
            # Ray itself would wait for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, **common)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise Mistake(
            f"data.ray_address: no Ray cluster answers at '{address}' ({cause}); "
            "start one with 'ray start --head', or write local"
        ) from None


def _short_folder() -> str:
    """Folder for Ray's sockets, whose names may have 107 characters in all."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 20 else "/tmp"


@contextlib.contextmanager
def _temporary_folder(parent: str) -> Iterator[str]:
    """A folder for Ray's logs and sockets; those of builds that were killed are swept away first.

    The owner of a folder holds a lock in it for as long as it lives.
    """
    for stale in Path(parent).glob("shardline-ray-*"):
        with contextlib.suppress(OSError), (stale / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - stale.stat().st_mtime > 60:
                shutil.rmtree(stale, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix="shardline-ray-", dir=parent)
    try:
        with (Path(folder) / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _use_private_token() -> None:
    """Gives this process a token for a session of its own, where Ray would write one to the home folder."""
    if not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
