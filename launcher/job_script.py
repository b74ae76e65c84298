"""Job files for Slurm from templates in slurm/: pure functions of a job and a cluster's profile.

Values reach a job file in three ways, none of which lets them be read as anything but text:
`directive` for #SBATCH lines (sbatch reads quotes and backslashes there), `quote` for words of bash, `expand` for words
of bash in which `${NAME}` alone still means a variable.
"""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jinja2
import xxhash

from common.mistakes import Mistake
from launcher.profiles import ClusterProfile

TEMPLATES = Path(__file__).resolve().parent.parent / "slurm"
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./^&|-]+")
LONGEST_NAME = 64


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job is to do, whatever the cluster."""

    run_dir: str
    """The run's folder, absolute."""
    workdir: str
    """Folder that paths of the config are relative to, absolute."""
    python: str
    """Python on the nodes."""
    nodes: int
    """Number of nodes."""
    time: str
    """Time limit as Slurm writes it."""
    steps: int = 0
    """Last step of the training."""
    stage: Literal["train", "data"] = "train"
    """What is done: training, or the data build before it."""
    verify: bool = False
    """Whether each start proves first that its ranks train as a plain loop does."""
    usable: tuple[int, ...] = ()
    """Numbers of nodes that it may start with, ascending, up to `nodes`; empty where it must have all."""
    wait_seconds: int = 0
    """How long a start with fewer nodes waits for more."""
    singleton: bool = False
    """Whether it waits for all jobs of its name, which then is the run's alone."""
    nodes_file: str = "/dev/null"
    """Where nodes that fail are remembered."""

    @property
    def fewest(self) -> int:
        """Fewest nodes that it starts with."""
        return min(self.usable, default=self.nodes)


def render(job: Job, profile: ClusterProfile) -> str:
    """The job file, for `sbatch`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        comment_start_string="{##",  # bash writes {# for lengths
        comment_end_string="##}",
    )
    environment.filters |= {"quote": quote, "expand": expand}
    return environment.get_template(f"{job.stage}.sbatch.j2").render(
        **dataclasses.asdict(job),
        fewest=job.fewest,
        profile=profile,
        restarts=profile.restarts.model_dump(),
        health=profile.health,
        directives=[directive(*each) for each in directives(job, profile)],
        environment=environment_of(profile),
        cpus=cpus_of(job, profile),
        srun=srun_words(job, profile),
        inside=inside_words(profile),
        health_arguments=health_arguments(profile),
    )


def directives(job: Job, profile: ClusterProfile) -> list[tuple[str, str | None]]:
    """Options for #SBATCH lines: name and value."""
    gpus = profile.gpus_per_node if job.stage == "train" else 0
    asked = f"{profile.gpu_type}:{gpus}" if profile.gpu_type else str(gpus)
    options: list[tuple[str, str | None]] = [
        ("--job-name", job_name(Path(job.run_dir).name, job.stage, job.run_dir if job.singleton else "")),
        *_size(job, profile),
        ("--gpus-per-node", asked if gpus and profile.gpu_request == "gpus-per-node" else None),
        ("--gres", f"gpu:{asked}" if gpus and profile.gpu_request == "gres" else None),
        ("--mem", profile.memory),
        ("--time", job.time),
        ("--signal", f"B:USR1@{profile.warning_seconds}"),
        ("--output", f"{job.stage}-%j.log"),
        ("--open-mode", "append"),
        *(
            (f"--{name}", getattr(profile, name))
            for name in ("partition", "account", "qos", "constraint", "reservation")
        ),
    ]
    flags = ["--requeue" if profile.requeue else "--no-requeue", *(["--exclusive"] if profile.exclusive else [])]
    given = [option for option in options if option[1] is not None]
    return [*given, *((flag, None) for flag in flags), *(_split(option) for option in profile.sbatch)]


def _size(job: Job, profile: ClusterProfile) -> list[tuple[str, str]]:
    """Nodes, and what is asked for on each.

    A job that was asked for with a number of tasks per node is started again by Slurm 22.05 on exactly as many nodes as
    it had, whatever range it gave; so one with a range asks for one task's cores, which are those of all its ranks.
    """
    ranks = profile.num_ranks if job.stage == "train" else 1
    if job.fewest < job.nodes:
        return [("--nodes", f"{job.fewest}-{job.nodes}"), ("--cpus-per-task", str(ranks * cpus_of(job, profile)))]
    cpus = str(cpus_of(job, profile))
    return [("--nodes", str(job.nodes)), ("--ntasks-per-node", str(ranks)), ("--cpus-per-task", cpus)]


def excluded_by(profile: ClusterProfile) -> list[str]:
    """Lists of nodes that a profile itself leaves out; an option of the command line takes the place of those."""
    given = [_split(option) for option in profile.sbatch]
    return [nodes for name, nodes in given if name in ("--exclude", "-x") and nodes]


def _split(option: str) -> tuple[str, str | None]:
    name, equals, value = option.partition("=")
    return name, value if equals else None


def job_name(run: str, stage: str, place: str = "") -> str:
    """Name of the job in the queue: the run's, on one line; with `place`, its folder, no other run has the same."""
    name = "".join(letter if letter.isprintable() else "_" for letter in run)[:LONGEST_NAME] or "run"
    if place:
        name += f"-{xxhash.xxh3_64_hexdigest(place.encode(errors='surrogateescape'))[:6]}"
    return name if stage == "train" else f"{name}-{stage}"


def environment_of(profile: ClusterProfile) -> dict[str, str]:
    """Variables the ranks get."""
    network = {"NCCL_SOCKET_IFNAME": profile.network_interface} if profile.network_interface else {}
    return {**network, **profile.environment}  # gloo's follows from it on each node: see slurm/network.py


def cpus_of(job: Job, profile: ClusterProfile) -> int:
    """CPU cores of a task: a rank's, or for a data build those of all ranks of a node."""
    return profile.cpus_per_rank * (profile.num_ranks if job.stage == "data" else 1)


def srun_words(job: Job, profile: ClusterProfile) -> list[str]:
    """Options of srun for what the job runs on its nodes."""
    binding = [f"--cpu-bind={profile.cpu_bind}"] if profile.cpu_bind and job.stage == "train" else []
    words = [f"--cpus-per-task={cpus_of(job, profile)}", *binding, *profile.srun]
    container = profile.container
    if container and container.kind == "pyxis":
        words.append(f"--container-image={container.image}")
        words += [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
        words += container.options
    return words


def inside_words(profile: ClusterProfile) -> list[str]:
    """What stands before Python in the command of a rank."""
    container = profile.container
    if container is None or container.kind != "apptainer":
        return []
    mounts = [word for mount in container.mounts for word in ("--bind", mount)]
    return [
        "apptainer",
        "exec",
        *(["--nv"] if profile.gpus_per_node else []),
        *mounts,
        *container.options,
        container.image,
    ]


def health_arguments(profile: ClusterProfile) -> list[str]:
    """Arguments of slurm.health_check that the profile decides."""
    health = profile.health
    values: Mapping[str, object] = {
        "level": health.level,
        "gpus": profile.gpus_per_node,
        "min-memory-gb": health.min_memory_gb,
        "min-disk-gb": health.min_disk_gb,
        "max-clock-skew": health.max_clock_skew_seconds,
        "min-matmul-tflops": health.min_matmul_tflops,
        "min-allreduce": health.min_allreduce_gb_per_second,
        "timeout": health.timeout_seconds,
    }
    return [
        f"--{name}={value:g}" if isinstance(value, float) else f"--{name}={value}" for name, value in values.items()
    ]


def directive(name: str, value: str | None) -> str:
    """One option for a #SBATCH line, in double quotes unless it is plain; in them sbatch takes away backslashes.

    Raises ValueError when the value has control characters, which no such line can hold.
    """
    if value is None:
        name, equals, value = name.partition("=")
        if not equals:
            return name
    if not value.isprintable():
        raise Mistake(f"{name}: {value!r} holds control characters, which a job file cannot ask for; remove them")
    if PLAIN.fullmatch(value):
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'


def quote(value: object) -> str:
    """A word of bash that means exactly this text, on one line."""
    text = str(value)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_escaped(byte) for byte in text.encode("utf-8", "surrogateescape")) + "'"


def _escaped(byte: int) -> str:
    letter = chr(byte)
    if letter in "'\\":
        return f"\\{letter}"
    return letter if 32 <= byte < 127 else f"\\x{byte:02x}"


def expand(value: object) -> str:
    """A word of bash that means this text, but for `${NAME}`, which means that variable (or nothing)."""
    text, words, end = str(value), [], 0
    for match in VARIABLE.finditer(text):
        words += [quote(text[end : match.start()]), f'"${{{match[1]}-}}"']
        end = match.end()
    words.append(quote(text[end:]))
    return "".join(word for word in words if word != "''") or "''"
