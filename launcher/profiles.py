"""Cluster profiles: what a Slurm cluster wants to be asked for, one YAML file each.

Files in configs/clusters serve by name (`--cluster practice`), others by path. In values marked *expanded*, `${NAME}`
stands for an environment variable of the job; nothing else in any value means anything to a shell.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from common.mistakes import Mistake, shown
from common.section import Place, Section
from launcher.config import read_yaml, validated
from launcher.time_limits import time_limit

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "clusters"

OURS = {
    "--account": "account",
    "--array": "",
    "--constraint": "constraint",
    "--cpus-per-task": "cpus_per_rank",
    "--dependency": "",
    "--exclusive": "exclusive",
    "--export": "environment",
    "--export-file": "environment",
    "--gpus-per-node": "gpus_per_node",
    "--job-name": "",
    "--mem": "memory",
    "--no-requeue": "",
    "--nodes": "",
    "--ntasks": "ranks_per_node",
    "--ntasks-per-node": "ranks_per_node",
    "--open-mode": "",
    "--output": "",
    "--partition": "partition",
    "--qos": "qos",
    "--requeue": "",
    "--reservation": "reservation",
    "--signal": "warning_seconds",
    "--time": "time",
    "--wrap": "",
    **dict(zip(("-A", "-C", "-p", "-q", "-t"), ("account", "constraint", "partition", "qos", "time"), strict=True)),
    **dict(zip(("-N", "-n", "-J", "-o", "-a"), ("", "ranks_per_node", "", "", ""), strict=True)),
}
"""Options that a job is made of, with the key that sets each; empty where the job alone knows what it must be."""
OF_ALL_STEPS = ("--export", "--export-file", "--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node", "--cpus-per-task")
"""Those among them that what a job runs on its nodes is made of."""
FORMER = "restarts_without_progress"
"""A key that profiles had before `restarts`."""


def _quoted(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        raise PydanticCustomError(
            "unquoted", "without quotes YAML reads it so (24:00:00 as 86400, 01234 as 668, no as False); quote it"
        )
    return value


def _not_ours(option: str) -> str:
    name = option.partition("=")[0]
    name = name if name.startswith("--") else name[:2]
    if name in OURS:
        hint = f"the key `{OURS[name]}` sets it" if OURS[name] else "each job has its own"
        raise PydanticCustomError("ours", "{name}: {hint}; remove it from this list", {"name": name, "hint": hint})
    return option


def _not_of_all_steps(option: str) -> str:
    return _not_ours(option) if option.partition("=")[0] in OF_ALL_STEPS else option


def _time(text: str) -> str:
    try:
        return time_limit(text, "time")
    except Mistake as mistake:
        raise PydanticCustomError("time", "{what}", {"what": str(mistake).removeprefix("time: ")}) from None


Text = Annotated[str, BeforeValidator(_quoted)]
Line = Annotated[Text, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text without control characters: it may stand in one line of a job file."""
Option = Annotated[Text, Field(pattern=r"^--?[A-Za-z][^\x00-\x1f\x7f]*$")]
"""An option of a command, as `--switches=1`."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Duration = Annotated[Text, AfterValidator(_time)]
"""A time limit in one of launcher.time_limits' forms; as Slurm writes it once it is read."""


class ContainerConfig(Section):
    """The container that ranks run in."""

    kind: Literal["pyxis", "apptainer"]
    """`pyxis` gives srun's options of NVIDIA's plugin (with enroot); `apptainer` runs `apptainer exec`."""
    image: Line
    """Image: a .sqsh file or registry for pyxis, a .sif file for apptainer. Expanded."""
    mounts: list[Line] = Field(default_factory=list)
    """Folders to be seen inside, as `/lustre:/lustre`. Expanded."""
    options: list[Option] = Field(default_factory=list)
    """Further options: of srun (`--container-...`) for pyxis, of `apptainer exec` for apptainer."""


class StageInConfig(Section):
    """A Python environment that each node unpacks to its own disk, as shared folders serve many imports badly."""

    archive: Line
    """Archive on a shared folder, as `tar -C env -cf env.tar.zst --zstd .` makes it; tar must be able to read it."""
    to: Line
    """Folder on each node's disk; below it, each archive gets a folder by its digest and is unpacked once. Expanded."""
    python: Line = "bin/python"
    """Python in the archive, which ranks then use."""
    timeout_seconds: int = Field(default=1800, ge=10)
    """How long a node may take to unpack; one that takes longer is left out of the job."""


class HealthConfig(Section):
    """What every node must prove before ranks start on it; a node that cannot is left out of the job."""

    level: Literal["off", "basic", "full"] = "basic"
    """`basic` looks at GPUs, ECC, memory, disk and clock; `full` also computes and reduces over the nodes."""
    min_memory_gb: float = Field(default=1.0, ge=0)
    """Least free memory, in GB (10^9 bytes)."""
    min_disk_gb: float = Field(default=1.0, ge=0)
    """Least free disk in the scratch folder, in GB."""
    max_clock_skew_seconds: float = Field(default=30.0, gt=0)
    """Most that a node's clock may differ from the first node's."""
    min_matmul_tflops: float = Field(default=0.0, ge=0)
    """Least speed of a bf16 matrix product on each GPU (fp32 on a CPU); 0 only wants it right."""
    min_allreduce_gb_per_second: float = Field(default=0.0, ge=0)
    """Least speed of an all-reduce over all GPUs of all nodes, bytes of a buffer per second; 0 only wants it right."""
    timeout_seconds: int = Field(default=180, ge=10)
    """How long the check may take, the start of containers included; a node without an answer by then has failed."""


class RestartsConfig(Section):
    """Restarts in a row that bring no newer checkpoint after which a job gives up, by what ended its starts."""

    broken: int = Field(default=2, ge=0)
    """Ranks that broke by an error that is no mistake in config or data."""
    corrupt: int = Field(default=3, ge=0)
    """A node that computed something else than the others; it is left out each time."""
    hang: int = Field(default=2, ge=0)
    """Ranks that got nowhere for longer than they may."""
    killed: int = Field(default=2, ge=0)
    """A rank that was killed: by hand, or by the kernel for want of memory where it does not say so."""
    node_lost: int = Field(default=3, ge=0)
    """A node that Slurm lost."""
    out_of_memory: int = Field(default=1, ge=0)
    """Memory that ran out, of a GPU or of a node: the same run on the same nodes will meet that again."""
    start: int = Field(default=2, ge=0)
    """Ranks that ended before they began to train: what they import, the network that they meet on."""
    time: int = Field(default=2, ge=0)
    """A time limit that came before a checkpoint was saved."""


class WeightsConfig(Section):
    """Points of a failure by its cause."""

    unhealthy: int = Field(default=1, ge=0)
    """The health check found it broken."""
    lost: int = Field(default=1, ge=0)
    """It did not answer any more."""
    hang: int = Field(default=1, ge=0)
    """Ranks named it as the one they waited for in vain."""
    corrupt: int = Field(default=3, ge=0)
    """Ranks named it as one that computed something else than the others."""


class LemonsConfig(Section):
    """Nodes that fail again and again, remembered in one file by all runs that are submitted with it."""

    file: Place | None = None
    """File of nodes' failures, on a folder that all nodes share and, for a group, all of it may write; empty is one of
    the user's own in ~/.local/state/shardline, by the profile's name."""
    points: int = Field(default=3, ge=1)
    """`submit` leaves a node out whose failures within `days` have so many points."""
    days: float = Field(default=7.0, gt=0)
    """How long a failure counts, in days."""
    weights: WeightsConfig = WeightsConfig()
    """Points of a failure by its cause."""


class ClusterProfile(Section):
    """How to ask a cluster for nodes, and what jobs need there."""

    description: str = ""
    """What cluster this is, for people."""
    practice: bool = False
    """True for the practice cluster: Slurm's commands are taken from it, not from PATH."""
    partition: Line | None = None
    """Partition; empty takes the cluster's default."""
    account: Line | None = None
    """Account that is charged."""
    qos: Line | None = None
    """Quality of service."""
    constraint: Line | None = None
    """Features that nodes must have, as `h100&ib`, or `[a100|a40]`: all of them the one or all of them the other."""
    reservation: Line | None = None
    """Reservation."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs to ask for on each node; 0 on a cluster of CPUs."""
    gpu_type: Line | None = None
    """Type of GPU to ask for, where a cluster has several."""
    gpu: Line | None = None
    """What GPUs they are, by their name in configs/machines.yaml: `submit` then says when a run would not fit them."""
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How GPUs are asked for; `none` where whole nodes come with all of theirs."""
    ranks_per_node: int | None = Field(default=None, ge=1)
    """Ranks on a node; empty means one per GPU, or one on a node without."""
    cpus_per_rank: int = Field(default=1, ge=1)
    """CPU cores of each rank."""
    memory: Line | None = "0"
    """Memory per node, as `900G`; `0` is all of it, empty leaves it to the cluster."""
    exclusive: bool = True
    """Whether jobs get whole nodes."""
    time: Duration = "24:00:00"
    """Time limit where `--time` gives none."""
    warning_seconds: int = Field(default=120, ge=1)
    """How long before the time limit the run is told to save; more than a step and a save take."""
    sbatch: list[Annotated[Option, AfterValidator(_not_ours)]] = Field(default_factory=list)
    """Further options of sbatch, as `--switches=1`."""
    srun: list[Annotated[Option, AfterValidator(_not_of_all_steps)]] = Field(default_factory=list)
    """Further options of srun for the ranks, as `--mpi=none`."""
    cpu_bind: Line | None = "cores"
    """srun's `--cpu-bind` for the ranks; empty leaves it to the cluster."""
    modules: list[Line] = Field(default_factory=list)
    """Environment modules to load."""
    source: list[Line] = Field(default_factory=list)
    """Shell files to source before the modules, as /etc/profile.d/modules.sh."""
    container: ContainerConfig | None = None
    """Container of the ranks; empty runs them as they are."""
    stage_in: StageInConfig | None = None
    """Python environment to unpack on each node before anything runs there; empty uses `python` where it lies."""
    python: Line | None = None
    """Python that has shardline, on the nodes or in the container; empty means the one that submits."""
    scratch: Line | None = None
    """Fast folder on each node, for temporary files and compiled kernels. Expanded."""
    shared_paths: list[Line] = Field(default_factory=lambda: ["/"])
    """Folders that all nodes share; runs, data and Python must lie in them."""
    network_interface: Line | None = None
    """Network that NCCL and gloo meet on, as `ib0`, or a pattern of NCCL's, as `^docker`; empty lets each node choose
    the one that leads to the others."""
    environment: dict[VariableName, Line] = Field(default_factory=dict)
    """Environment variables of the ranks. Values are expanded."""
    health: HealthConfig = HealthConfig()
    """What nodes must prove first."""
    lemons: LemonsConfig = LemonsConfig()
    """Which nodes `submit` leaves out for having failed too often."""
    requeue: bool = True
    """Whether jobs may start again by themselves; false on a cluster without that, where `--chain` takes its place."""
    restarts: RestartsConfig = RestartsConfig()
    """How often a job starts again without progress before it gives up, by cause."""

    @property
    def num_ranks(self) -> int:
        """Ranks on each node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @model_validator(mode="before")
    @classmethod
    def _has_no_former_keys(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and FORMER in tree:
            raise Mistake(
                f"{FORMER}: is told by cause now; write restarts: {{broken: {shown(tree[FORMER])}}} in its place"
            )
        return tree

    @model_validator(mode="after")
    def _fits(self):
        if self.gpus_per_node and self.num_ranks > self.gpus_per_node:
            raise Mistake(f"ranks_per_node: {self.num_ranks} is more than gpus_per_node {self.gpus_per_node}")
        if self.gpu_type and not self.gpus_per_node:
            raise Mistake("gpu_type: gpus_per_node is 0, so no GPU is asked for; set it or remove gpu_type")
        if self.stage_in and (self.container or self.python):
            other = "container" if self.container else "python"
            raise Mistake(f"stage_in: {other} says already what Python ranks use; remove one of the two")
        if self.lemons.file and not self.lemons.file.startswith("/"):
            raise Mistake(f"lemons.file: '{self.lemons.file}' is not an absolute path")
        if not self.shared_paths:
            raise Mistake("shared_paths: is empty; name the folders that all nodes share, as /lustre")
        for path in self.shared_paths:
            if not path.startswith("/"):
                raise Mistake(f"shared_paths: '{path}' is not an absolute path")
        return self


def load_profile(name: str) -> ClusterProfile:
    """The profile of this name in configs/clusters, or in the file of this path.

    Raises ValueError, one sentence, when there is none or a key of it is wrong; the nearest name or key is given.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not name.endswith((".yaml", ".yml")) and not path.is_file():
        nearest = difflib.get_close_matches(name, names(), n=1)
        hint = (
            f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(names())}, or give a path to a .yaml"
        )
        raise Mistake(f"--cluster {name}: no such profile in {FOLDER}; {hint}")
    return validated(ClusterProfile, read_yaml(path), str(path))


def names() -> list[str]:
    """Names of the profiles that come with shardline."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
