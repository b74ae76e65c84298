"""What is fuzzed: a valid folder of each kind, the code that reads it, and when what was read is wrong.

    Kind.make(folder) once -> copied and spoilt for each case -> Kind.read(folder) -> Kind.judge(found, valid)

Readers are those behind the commands. Where a checksum covers what is read, it must come back as it was written or not
at all; where the file is the authority itself (a config, a line of metrics), it must have the form that others rely on.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import yaml

from benchmarks.fuzz_folders import (
    LOCAL,
    NEWEST,
    RUN,
    STEPS,
    make_dataset,
    make_foreign,
    make_full_config,
    make_jump,
    make_local,
    make_profile,
    make_run,
)
from common.files import checksum
from data_pipeline.manifest import FILE_NAME
from data_pipeline.opening import open_dataset
from data_pipeline.reading.dataset import TokenDataset
from data_pipeline.reading.inspect import inspect_dataset, verify_dataset
from data_pipeline.shards import ShardReader, write_sums
from data_pipeline.tokenizer import MODEL_NAME, Tokenizer
from launcher import views
from launcher.config import load_config, to_yaml
from launcher.console import StageProgress
from launcher.report import write_report
from launcher.run_folder import RunFolder, last_step, metrics_of
from launcher.stages import train_tokenizer as train_tokenizer_of
from launcher.status import status
from launcher.submit import Request, scripts
from training import fence
from training.config import RunConfig
from training.distributed import World
from training.events import EventLog
from training.jumps import is_given_up, jumped, settle
from training.local.folder import LocalFolder
from training.local.nodes import Nodes
from training.local.promoting import promote
from training.lock import refuse_second_writer
from training.metrics import forget_after
from training.state.choosing import choose, read_index
from training.state.folder import delete_superseded, latest_checkpoint, point_to, reading
from training.state.identity import RunState, check_identity
from training.state.loading import stream_weights
from training.state.sums import CHECKSUMS, dump_sums
from training.worker import read_config

Judge = Callable[[Any, Any], str]
FROM_THE_BEGINNING = (0, "", None)
"""What a run goes on from that went back over all its checkpoints."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input."""

    name: str
    """What it is called on the command line."""
    files: dict[str, str]
    """Forms of the files that are spoilt, by path below the folder of a case."""
    make: Callable[[Path], object]
    """Writes a valid folder."""
    read: Callable[[Path], Any]
    """Reads it as commands do, and returns what there is to compare."""
    judge: Judge
    """(found, valid) -> why what was found is wrong, else empty."""
    words: tuple[str, ...]
    """A command that reads it; the folder of a case is its working folder."""
    share: int = 1
    """How many cases it gets for each one of others."""
    mend: Callable[[Path], object] = lambda folder: None
    """Done after a file was spoilt: makes checksums fit what is there now."""
    right: Callable[[Path], Any] | None = None
    """What a valid folder is read as, for `judge`; as by `read` if empty."""


def any_value(found: Any, valid: Any) -> str:
    """For what is its own authority: whatever is read is right."""
    return ""


def the_same(found: Any, valid: Any) -> str:
    """For what checksums cover."""
    return "" if found == valid else "what was read is not what was written"


def read_run_config(folder: Path) -> str:
    """The resolved config, which must mean the same when it is read again."""
    text = to_yaml(load_config(folder / "run.yaml"))
    (folder / "again.yaml").write_text(text)
    assert to_yaml(load_config(folder / "again.yaml")) == text, "a resolved config does not read back equal"
    return text


def read_profile(folder: Path) -> list[str]:
    """Job files of both stages."""
    config = load_config(folder / "run.yaml")
    return list(scripts(config, Request(str(folder / "cluster.yaml"), 2, stage="data")).values())


def read_tokenizer(folder: Path) -> tuple[str, Any]:
    """Its fingerprint, and ids and text of some words."""
    tokenizer = Tokenizer.load(folder / "tokenizer", "off")
    tokenizer.record()
    ids = tokenizer.encode("they have the word\n\u00e9\U0001f600<mask>")
    tokens, lengths = tokenizer.encode_documents(["from this", ""])
    return tokenizer.fingerprint, (ids.tolist(), tokenizer.decode(ids), tokens.tolist(), lengths.tolist())


def read_record(folder: Path) -> str:
    """What is said of a tokenizer that was trained already."""
    return views.tokenizer(train_tokenizer_of(load_config(folder / "run.yaml"), StageProgress("training")))


def same_fingerprint_same_meaning(found: tuple[str, Any], valid: tuple[str, Any]) -> str:
    """A model file of another fingerprint is another tokenizer, which datasets and runs refuse."""
    return "another meaning under the same fingerprint" if found[0] == valid[0] and found != valid else ""


def read_data(folder: Path) -> dict[str, Any]:
    """Fingerprints of a dataset and every document of it, by the ways of a start, an inspection and a verification."""
    data = folder / "dataset"
    manifest = open_dataset(data, folder / "tokenizer")
    documents = {}
    for split in manifest.splits:
        rows = TokenDataset(data, manifest, split, max(1, manifest.num_tokens(split)), overlap=0)
        documents[split] = [piece.tobytes() for index in range(len(rows)) for piece in rows.sample(index)]
        for piece in (piece for index in (0, len(rows) - 1) if len(rows) for piece in rows.sample(index)):
            assert len(piece), "a document of no tokens"
    verify_dataset(data)
    for split in manifest.splits:
        inspect_dataset(data, Tokenizer.load(folder / "tokenizer", "off"), split=split, sequence_length=64)
    return {"fingerprints": manifest.fingerprints, "documents": documents}


def same_documents(found: dict[str, Any], valid: dict[str, Any]) -> str:
    """The same fingerprints mean the same documents, and other ones documents that were written all the same."""
    if found["fingerprints"] == valid["fingerprints"] and found["documents"] != valid["documents"]:
        return "other documents under the same fingerprints"
    written = {document for split in valid["documents"].values() for document in split}
    read = {document for split in found["documents"].values() for document in split}
    return "" if read <= written else "a document that nobody wrote"


def read_foreign(folder: Path) -> list[int]:
    """Lengths of its documents, which must make up its tokens."""
    write_sums(folder / "theirs")
    reader = ShardReader(folder / "theirs")
    starts = reader.boundaries(0, reader.num_tokens)
    reader.tokens(0, reader.num_tokens).sum()
    assert len(starts) == reader.num_documents and (np.diff(starts) > 0).all(), "documents that do not follow another"
    return starts.tolist()


def read_checkpoint(folder: Path) -> tuple[int, str, Any]:
    """Step, digest of all tensors and state of the checkpoint that the run would go on from."""
    run = folder / RUN
    with reading(run):
        chosen = choose(run, World.alone()).checkpoint
        assert chosen is not None, "a run with checkpoints would begin anew"
        digest = xxhash.xxh3_128()
        for kind in read_index(chosen.folder).kinds:
            for name, tensor in stream_weights(chosen.folder, kind):
                digest.update(f"{name} {list(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
    check_identity(chosen.identity, chosen.identity, chosen.folder)
    state = chosen.state
    assert state.step + state.samples_consumed >= 0 and state.tokens_consumed + 1, "a state that is none"
    return state.step, digest.hexdigest(), dataclasses.asdict(state)


def read_both_checkpoints(folder: Path) -> list[tuple[int, str, Any]]:
    """What `read_checkpoint` may say of a run: of the newest, or of the one before it."""
    newest, home = read_checkpoint(folder), folder / RUN / "checkpoints"
    shutil.rmtree(home / "step-00000020")
    (home / "latest").unlink()
    return [newest, read_checkpoint(folder)]


def one_of_its_checkpoints(found: tuple[int, str, Any], valid: list[tuple[int, str, Any]]) -> str:
    """The newest as it was written, or the one before it as that was."""
    return "" if found in valid else f"a checkpoint of step {found[0]} that nobody wrote"


def reseal(folder: Path) -> None:
    """Computes the list of checksums anew, as somebody would who changes a checkpoint on purpose."""
    newest = folder / NEWEST
    if newest.is_dir() and not (newest / CHECKSUMS).is_symlink():
        files = [path for path in newest.iterdir() if path.name != CHECKSUMS and path.is_file()]
        if not any(path.is_symlink() for path in files):
            (newest / CHECKSUMS).write_bytes(dump_sums({path.name: checksum(path) for path in files}))


def read_state(folder: Path) -> tuple[int, str, Any]:
    """What a start does with the small files of a run, and what the run would go on from."""
    run = folder / RUN
    found = read_checkpoint(folder)
    RunFolder.read(run)
    fence.read(run)
    fence.is_lost(run, "7.1")
    refuse_second_writer(run)
    fence.take(run, "8.0")
    fence.check(run, "8.0")
    if (newest := latest_checkpoint(run)) is not None:
        point_to(newest)
    delete_superseded(run, 1, None)
    return found


def read_jump(folder: Path) -> tuple[int, str, Any]:
    """What the run would go on from, once it has gone back as its file of jumps says."""
    run = folder / RUN
    fence.take(run, "8.0")
    jumps = settle(run, "8.0")
    found = FROM_THE_BEGINNING if is_given_up(STEPS[0], 0, jumps) else read_checkpoint(folder)
    state = jumped(RunState(found[0], 16 * found[0], 500 * found[0]), jumps)
    assert 0 <= state.samples_consumed < 2**62, "samples that no order has"
    return found


def read_jump_and_newest(folder: Path) -> list[tuple[int, str, Any]]:
    """What `read_jump` may say: the newest where the jump is spoilt to none, the one before it, or none at all."""
    return [read_checkpoint(folder), read_jump(folder), FROM_THE_BEGINNING]


def read_local(folder: Path) -> tuple[int, str, Any]:
    """What the run would go on from, once what its node holds was looked at."""
    run, world = folder / RUN, World.alone()
    fence.take(run, "8.0")
    local = LocalFolder(folder / LOCAL, Nodes.of(world), is_first=True)
    promote(local, run, world, STEPS[0], lambda state: False)
    return read_checkpoint(folder)


def read_local_and_shared(folder: Path) -> list[tuple[int, str, Any]]:
    """What `read_local` may say: the local checkpoint, or the shared one before it."""
    return [read_checkpoint(folder), read_local(folder)]


def read_run(folder: Path) -> list[str]:
    """All that is made of a run's files: status, report, progress; and what a start makes of them."""
    run = folder / RUN
    status(run)
    stands = RunFolder.read(run)
    assert stands.config is not None
    write_report(stands.config)
    last_step(run)
    log = EventLog(run, 0, {"attempt": "9.9"})
    log.write("start", time=time.time())
    log.error("x", 2)
    assert log.has_been_told(), "an event that was written is not found"
    losses = [repr(line["loss"]) for line in metrics_of(run) if "loss" in line]
    forget_after(run / "metrics.jsonl", 10)
    return losses


def read_worker_config(folder: Path) -> str:
    """The config that a rank reads, and what others read of the same file."""
    run = folder / RUN
    config: RunConfig = read_config(run)
    (folder / "same.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert to_yaml(load_config(folder / "same.yaml")) == to_yaml(config), "ranks and commands read another config"
    return yaml.safe_dump(config.model_dump(mode="json"))


INSPECT = ("data", "inspect", "dataset", "--tokenizer", "tokenizer")
STATUS = ("status", RUN)

ALL = (
    Kind(
        "config", {"run.yaml": "yaml"}, make_full_config, read_run_config, any_value, ("config", "show", "run.yaml"), 3
    ),
    Kind(
        "profile",
        {"cluster.yaml": "yaml"},
        make_profile,
        read_profile,
        any_value,
        ("submit", "run.yaml", "--cluster", "cluster.yaml", "--nodes", "2", "--dry-run"),
        2,
    ),
    Kind("manifest", {f"dataset/{FILE_NAME}": "json"}, make_dataset, read_data, same_documents, INSPECT, 3),
    Kind(
        "shard",
        {
            f"dataset/{split}-00000{suffix}": "binary"
            for split in ("train", "validation")
            for suffix in (".bin", ".idx", ".sums")
        },
        make_dataset,
        read_data,
        the_same,
        ("data", "verify", "dataset"),
        3,
    ),
    Kind("foreign shard", {"theirs.bin": "binary", "theirs.idx": "binary"}, make_foreign, read_foreign, any_value, ()),
    Kind(
        "tokenizer",
        {f"tokenizer/{MODEL_NAME}": "binary"},
        make_dataset,
        read_tokenizer,
        same_fingerprint_same_meaning,
        INSPECT,
    ),
    Kind(
        "tokenizer record",
        {"tokenizer/tokenizer_info.json": "json"},
        make_dataset,
        read_record,
        any_value,
        ("tokenizer", "train", "run.yaml"),
    ),
    Kind(
        "checkpoint",
        {
            f"{NEWEST}/{name}": form
            for name, form in (
                ("index.json", "json"),
                ("state.json", "json"),
                (CHECKSUMS, "json"),
                ("part-00000.safetensors", "binary"),
            )
        },
        make_run,
        read_checkpoint,
        one_of_its_checkpoints,
        ("convert", RUN, "--out", "served"),
        3,
        right=read_both_checkpoints,
    ),
    Kind(
        "resealed checkpoint",
        {
            f"{NEWEST}/{name}": form
            for name, form in (("index.json", "json"), ("state.json", "json"), ("part-00000.safetensors", "binary"))
        },
        make_run,
        read_checkpoint,
        any_value,
        ("convert", RUN, "--out", "served"),
        2,
        reseal,
    ),
    Kind(
        "state",
        {f"{RUN}/{name}": "binary" for name in ("checkpoints/latest", "attempt", "lock", "readers")},
        make_run,
        read_state,
        one_of_its_checkpoints,
        STATUS,
        right=read_both_checkpoints,
    ),
    Kind(
        "jumps",
        {f"{RUN}/jumps.json": "json"},
        make_jump,
        read_jump,
        one_of_its_checkpoints,
        STATUS,
        right=read_jump_and_newest,
    ),
    Kind(
        "local checkpoint",
        {
            f"{LOCAL}/{Path(NEWEST).name}/{name}": form
            for name, form in (
                ("index.json", "json"),
                ("state.json", "json"),
                (CHECKSUMS, "json"),
                ("part-00000.safetensors", "binary"),
            )
        },
        make_local,
        read_local,
        one_of_its_checkpoints,
        (),
        2,
        right=read_local_and_shared,
    ),
    Kind("config of a run", {f"{RUN}/config.yaml": "yaml"}, make_run, read_worker_config, any_value, STATUS),
    Kind("metrics", {f"{RUN}/metrics.jsonl": "lines"}, make_run, read_run, any_value, STATUS, 2),
    Kind(
        "events",
        {f"{RUN}/events.jsonl": "lines", f"{RUN}/events/job-7.0.jsonl": "lines"},
        make_run,
        read_run,
        any_value,
        STATUS,
        2,
    ),
    Kind("jobs", {f"{RUN}/slurm/jobs.jsonl": "lines"}, make_run, read_run, any_value, (*STATUS, "--json")),
)
"""Every kind, in the order of the table."""
