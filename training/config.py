"""A whole run in one typed value: `RunConfig`, with one section per part of the system."""

import math
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from common.mistakes import Mistake, shown
from common.section import Place, Section
from data_pipeline.config import DataConfig, ObjectiveConfig, TokenizerConfig
from data_pipeline.reading.grid import check_pair
from model.config import MOST_TOKENS, MULTI_TOKEN_WEIGHT, ModelConfig
from training.guards_config import GuardsConfig
from training.phases import Phase

MOST_STEPS = 10**9
"""Steps or samples of a run, and distances between them: 30 years of one a second."""
MOST_SAMPLES = 2**24
"""Samples of a step; at 2,048 tokens each they would be 34 billion tokens a step."""
INT32 = 2**31 - 1
"""Borders of documents inside a pack are int32, for so the attention kernels take them."""
WEEK = 7 * 24 * 60.0
"""Minutes in a week: no cluster lets a job run much longer, and torch's clocks count nanoseconds."""

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW (arXiv 1711.05101), or Muon for hidden matrices and AdamW for all else (arXiv 2502.16982).

    Biases, norms and other vectors get no weight decay.
    """

    name: Literal["adamw", "muon"] = "adamw"
    """What changes the matrices of blocks; embeddings, output matrix and vectors are AdamW's. `muon` keeps one moment
    of them, not two, and takes the learning rate and decay that `adamw` would."""
    lr: float = Field(default=3e-4, gt=0, le=1e3)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the first and second moment of AdamW."""
    momentum: Decay | None = None
    """Decay of the moment of `muon`; empty means 0.95."""
    eps: float = Field(default=1e-8, gt=0, le=1)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0, le=1e3)
    """Decoupled weight decay of matrices."""
    gradient_clipping: float = Field(default=1.0, ge=0, le=1e6)
    """Largest global gradient norm; 0 clips nothing."""

    @model_validator(mode="after")
    def _momentum_is_used(self):
        if self.momentum is not None and self.name != "muon":
            raise Mistake(f"momentum: only name muon has it, this is {self.name} (see betas); remove it")
        return self


class ScheduleConfig(Section):
    """Learning rate over the steps of the run, as a factor of `optimizer.lr`."""

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Form of the decay after warmup; `wsd` stays at the peak and falls linearly over the last `decay_steps`."""
    warmup_steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    """Steps of linear rise from 0 to the peak."""
    decay_steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Length of the final fall of `wsd`; empty means a tenth of the run."""
    min_lr_ratio: float | None = Field(default=None, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak; empty means 0.1. `constant` has none."""

    @property
    def last_ratio(self) -> float:
        """Share of the peak that the forms which fall end at."""
        return 0.1 if self.min_lr_ratio is None else self.min_lr_ratio


class ProfileConfig(Section):
    """Steps that torch's profiler records, in RUN_DIR/profile/; they are slower than others."""

    start: int = Field(ge=1, le=MOST_STEPS)
    """First step; the first one or two of a run are not like the others."""
    steps: int = Field(default=3, ge=1, le=100)
    """How many; a file has some 100 MB a step for a large model."""
    ranks: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(default=[0], min_length=1)
    """Whose."""

    @property
    def end(self) -> int:
        """The last of the steps."""
        return self.start + self.steps - 1


class TrainingConfig(Section):
    """Size and precision of the steps."""

    steps: int = Field(ge=1, le=MOST_STEPS)
    """Optimizer steps of the whole run."""
    sequence_length: int = Field(ge=2, le=MOST_TOKENS)
    """Tokens of one sample, in an encoder-decoder of its encoder; documents in it never see each other."""
    target_length: int | None = Field(default=None, ge=2, le=MOST_TOKENS)
    """Tokens of a sample in the decoder of an encoder-decoder; empty is what the objective makes of a full encoder."""
    global_batch_size: int = Field(ge=1, le=MOST_SAMPLES)
    """Samples per optimizer step over all ranks."""
    micro_batch_size: int = Field(default=1, ge=1, le=MOST_SAMPLES)
    """Samples a rank works on at once; what is missing to the global batch is accumulated."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: 1 shards optimizer states, 2 gradients too, 3 parameters too, 0 nothing."""
    initial_weights: Place | None = None
    """Folder made by `shardline import`, whose weights a new run starts from; empty draws them from the seed."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the forward and backward pass; master weights are always fp32, as is the sum over micro-batches."""
    gradient_communication: Literal["fp32", "bf16"] = "fp32"
    """What ranks sum their gradients in; bf16 halves what they send and rounds the sum, and needs precision bf16."""
    z_loss: float = Field(default=0.0, ge=0, le=1e3)
    """Weight of the squared log-partition term (PaLM, arXiv 2204.02311, section 5)."""
    multi_token_weight: float | None = Field(default=None, gt=0, le=1e3)
    """Weight of the mean loss of `model.multi_token_depths`; empty means 0.3, as of DeepSeek-V3's first 10 T tokens."""
    num_processes: int = Field(default=1, ge=1, le=1024)
    """Ranks `shardline train` starts on this machine; a cluster job sets its own."""
    threads_per_process: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads of a rank; empty shares the machine's cores between the ranks."""
    log_interval: int = Field(default=1, ge=1, le=MOST_STEPS)
    """Steps between lines of metrics."""
    prefetch: int = Field(default=2, ge=0, le=1024)
    """Global batches prepared ahead in a background thread."""
    peak_tflops: float | None = Field(default=None, gt=0, le=1e6)
    """Arithmetic peak of one rank's device for MFU; empty looks the GPU up, and measures a matmul on CPU."""
    start_minutes: float = Field(default=30.0, ge=0.01, le=WEEK)
    """Deadline of each phase until the first step is over (see `deadlines`): imports, loading and compiling take
    minutes."""
    hang_minutes: float = Field(default=10.0, ge=0.01, le=WEEK)
    """The same from then on. A run in which a rank gets nowhere for so long ends with an error; longer than any save
    takes."""
    gc_interval: int | None = Field(default=50, ge=1, le=MOST_STEPS)
    """Steps between garbage collections, on all ranks at once, else one is always late; empty leaves it to Python."""
    profile: ProfileConfig | None = None
    """Steps to be profiled; empty profiles none."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further DeepSpeed keys, merged into its config; keys that this file sets elsewhere are refused."""

    @property
    def further_weight(self) -> float:
        """What the mean loss of further depths is multiplied by."""
        return MULTI_TOKEN_WEIGHT if self.multi_token_weight is None else self.multi_token_weight

    @model_validator(mode="after")
    def _profile_fits(self):
        if self.profile is not None and self.profile.end > self.steps:
            span = f"{self.profile.start} to {self.profile.end}"
            raise Mistake(f"profile: steps {span} are not all among the {self.steps} of the run; change start or steps")
        return self

    @model_validator(mode="after")
    def _precision_fits(self):
        if self.zero_stage == 0 and self.precision == "bf16":
            raise Mistake(
                "zero_stage: 0 keeps no fp32 master weights under bf16; use zero_stage 1 or more, or precision fp32"
            )
        if self.gradient_communication == "bf16" and self.precision == "fp32":
            raise Mistake("gradient_communication: bf16 would round the gradients of precision fp32; use fp32")
        if self.global_batch_size % self.micro_batch_size:
            raise Mistake(
                f"micro_batch_size: {self.micro_batch_size} does not divide global_batch_size {self.global_batch_size}"
            )
        longest = max(self.sequence_length, self.target_length or 0)
        if self.micro_batch_size * longest > INT32:
            raise Mistake(
                f"micro_batch_size: {self.micro_batch_size} samples of {longest} tokens are more than the {INT32} "
                "tokens that attention kernels can number; lower it"
            )
        return self


class ParallelConfig(Section):
    """How many ranks work on one micro-batch together; all others read other samples."""

    tensor: int = Field(default=1, ge=1, le=1024)
    """Ranks that share each layer: heads, inner width and vocabulary are cut (arXiv 1909.08053). On one node."""
    context: int = Field(default=1, ge=1, le=1024)
    """Ranks that share each row: each has a part of its tokens, in attention a part of the heads (arXiv 2309.14509)."""
    sequence_parallel: bool | None = None
    """Cut by rows what lies between the layers that tensor ranks share (arXiv 2205.05198); empty does if there are."""

    @model_validator(mode="after")
    def _has_ranks(self):
        if self.sequence_parallel and self.tensor == 1:
            raise Mistake("sequence_parallel: it needs ranks that share layers; raise tensor or leave it empty")
        return self

    @property
    def axes(self) -> dict[str, int]:
        """Sizes of the axes by name."""
        return {"tensor": self.tensor, "context": self.context}

    @property
    def num_sharing(self) -> int:
        """Ranks that read the same samples."""
        return math.prod(self.axes.values())

    @property
    def sharing_in_words(self) -> str:
        """The axes that `num_sharing` counts, by their keys."""
        named = [f"parallel.{name} {size}" for name, size in self.axes.items() if size > 1]
        return " x ".join(named) or "1"

    @property
    def row_parts(self) -> int:
        """In how many parts the tokens of a micro-batch are cut."""
        return self.context * (self.tensor if self.cuts_rows else 1)

    @property
    def cuts_rows(self) -> bool:
        """Whether what lies between shared layers is cut by rows."""
        return self.tensor > 1 and self.sequence_parallel is not False


class EvaluationConfig(Section):
    """Loss on held-out documents."""

    interval_steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Steps between evaluations; empty evaluates only after the last step."""
    num_samples: int = Field(default=256, ge=1, le=MOST_STEPS)
    """Held-out samples of one evaluation (all of them when there are fewer)."""
    objectives: list[ObjectiveConfig] = Field(default_factory=list)
    """Objectives to evaluate beside the run's own, each by its loss; those of a mixture are added by themselves."""
    by_source: bool | None = None
    """Evaluate the held-out documents of each source by themselves too; empty does where there is a `data.mix`."""


class CheckpointConfig(Section):
    """What is saved, and how much of it is kept."""

    interval_steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Steps between checkpoints; empty saves only after the last step."""
    in_background: bool = True
    """Write checkpoints while steps go on, from copies in the host's memory; false has steps wait for the disk."""
    local_interval_steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Steps between checkpoints on nodes' own disks, with copies of parts on another node; empty saves none there."""
    local_dir: str | None = None
    """Folder on each node's own disk for these; absolute, or begins with a variable of the node such as $SCRATCH."""
    keep: int = Field(default=2, ge=1, le=MOST_STEPS)
    """Newest checkpoints kept; older ones are deleted once a newer one is complete."""
    keep_every_steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Checkpoints at multiples of this many steps are never deleted."""
    writers: int | None = Field(default=None, ge=1, le=1_000_000)
    """Ranks that write at once, for file systems that many slow down; empty is all, or 32 on NFS."""

    @model_validator(mode="after")
    def _local_saves_have_a_place(self):
        if (self.local_interval_steps is None) != (self.local_dir is None):
            raise Mistake("local_interval_steps: it goes with local_dir; set both or neither")
        if self.local_dir is not None and not self.local_dir.startswith(("/", "$")):
            raise Mistake(
                f"local_dir: {shown(self.local_dir)} means another folder wherever a job starts; use an absolute path "
                "on the nodes' own disks, or one that begins with a variable of the node"
            )
        return self


Minutes = Annotated[float, Field(ge=0.01, le=WEEK)]


class DeadlinesConfig(Section):
    """By when a run has ended in which a rank gets nowhere, by what it is at; empty is what `training` says for all."""

    rendezvous_minutes: Minutes | None = None
    """From a rank's first line of Python until all have come; empty is `training.start_minutes`."""
    import_minutes: Minutes | None = None
    """Importing DeepSpeed; empty is `training.start_minutes`."""
    data_minutes: Minutes | None = None
    """Opening the dataset and choosing a checkpoint; empty is `training.start_minutes`."""
    load_minutes: Minutes | None = None
    """Making or loading model and optimizer; empty is `training.start_minutes`."""
    first_step_minutes: Minutes | None = None
    """The first batch and step, which connect and compile; empty is `training.start_minutes`."""
    step_minutes: Minutes | None = None
    """A step and the wait for its batch; empty is `training.hang_minutes`."""
    save_minutes: Minutes | None = None
    """A checkpoint; empty is `training.hang_minutes`."""
    evaluation_minutes: Minutes | None = None
    """An evaluation; empty is `training.hang_minutes`."""
    leaving_minutes: Minutes | None = None
    """From the last step, or a signal, to the end of all processes; empty is `training.hang_minutes`."""
    slow_step_factor: float | None = Field(default=20.0, ge=2, le=1e6)
    """A step that takes so many times the median of the last ones counts as one that gets nowhere; empty: never."""
    slow_step_floor_minutes: Minutes = 5.0
    """But never one that takes less than this."""


class RunConfig(Section):
    """Everything a run is made of, from documents to checkpoints."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder."""
    runs_dir: Place = "runs"
    """Folder that holds the folders of runs."""
    seed: int = Field(default=1234, ge=0, lt=2**63)
    """Seed of weights, data order and everything else drawn at random."""
    tokenizer: TokenizerConfig
    """The tokenizer."""
    data: DataConfig
    """The dataset."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is predicted."""
    model: ModelConfig
    """The network."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How weights are changed."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate goes."""
    training: TrainingConfig
    """Size and precision of the steps."""
    parallel: ParallelConfig = ParallelConfig()
    """Ranks that work on one micro-batch together."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out loss."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    """Patience."""
    guards: GuardsConfig = GuardsConfig()
    """Bad steps."""

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, tree: Any) -> Any:
        _refuse_truth_values(cls, tree)
        return tree

    @model_validator(mode="after")
    def _schedule_fits(self):
        steps, warmup = self.training.steps, self.schedule.warmup_steps
        if warmup > steps:
            raise Mistake(f"schedule.warmup_steps: {warmup} is more than training.steps {steps}")
        if self.schedule.min_lr_ratio is not None and self.schedule.name == "constant":
            raise Mistake("schedule.min_lr_ratio: schedule.name constant never falls; remove it or choose another")
        decay = self.schedule.decay_steps
        if decay is not None and self.schedule.name != "wsd":
            raise Mistake(f"schedule.decay_steps: only schedule.name wsd uses it, this is {self.schedule.name}")
        if decay is not None and warmup + decay > steps:
            raise Mistake(
                f"schedule.decay_steps: {decay} and warmup_steps {warmup} together are more than training.steps {steps}"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self):
        if self.optimizer.name == "muon" and self.training.zero_stage == 3:
            raise Mistake(
                "optimizer.name: muon needs whole matrices and training.zero_stage 3 cuts each between all ranks; use "
                "zero_stage 1 or 2, or optimizer.name adamw"
            )
        return self

    @model_validator(mode="after")
    def _shape_fits(self):
        shape, length = self.model.shape, self.training.target_length
        if self.training.multi_token_weight is not None and not self.model.multi_token_depths:
            raise Mistake(
                "training.multi_token_weight: it weighs the loss of model.multi_token_depths, which is 0; set both or "
                "neither"
            )
        check_pair(self.objective, shape)
        for number, objective in enumerate(self.evaluation.objectives):
            check_pair(objective, shape, f"evaluation.objectives[{number}]")
        if length is not None and shape != "encdec":
            raise Mistake(f"training.target_length: only shape encdec has a row of targets, this is {shape}")
        rows, longest = self.model.max_positions, max(self.training.sequence_length, length or 0)
        if rows is not None and rows < longest:
            raise Mistake(
                f"model.max_positions: {rows} learned positions are fewer than the {longest} tokens a document may "
                "have; raise it or shorten training.sequence_length"
            )
        return self

    @model_validator(mode="after")
    def _tensor_ranks_fit(self):
        parallel, model = self.parallel, self.model
        if parallel.tensor > 1 and model.qk_norm == "all_heads":
            raise Mistake(
                f"model.qk_norm: all_heads takes a mean over heads that parallel.tensor {parallel.tensor} ranks would "
                "share; use true, or parallel.tensor 1 with parallel.context"
            )
        both = parallel.num_sharing, parallel.sharing_in_words
        shared = {
            "num_heads": (model.num_heads, *both),
            "num_kv_heads": (model.kv_heads, *both),
            "d_ff": (model.d_ff, parallel.tensor, f"parallel.tensor {parallel.tensor}"),
        }
        if model.head_transform:
            shared["d_model"] = (model.d_model, parallel.tensor, f"parallel.tensor {parallel.tensor}")
        for name, (count, ranks, words) in shared.items():
            if count % ranks:
                raise Mistake(
                    f"model.{name}: {count} cannot be shared evenly by {words} ranks; use a divisor of {count}"
                )
        return self

    @property
    def phase_minutes(self) -> dict[Phase, float]:
        """Deadline of each phase."""
        training, given = self.training, self.deadlines
        start, run = training.start_minutes, training.hang_minutes
        return {
            Phase.RENDEZVOUS: given.rendezvous_minutes or start,
            Phase.IMPORT: given.import_minutes or start,
            Phase.DATA: given.data_minutes or start,
            Phase.LOAD: given.load_minutes or start,
            Phase.FIRST_STEP: given.first_step_minutes or start,
            Phase.STEP: given.step_minutes or run,
            Phase.SAVE: given.save_minutes or run,
            Phase.EVALUATION: given.evaluation_minutes or run,
            Phase.LEAVING: given.leaving_minutes or run,
        }

    @property
    def longest_minutes(self) -> float:
        """The longest deadline once the first step is over."""
        after = (Phase.STEP, Phase.SAVE, Phase.EVALUATION, Phase.LEAVING)
        return max(self.phase_minutes[phase] for phase in after)

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.runs_dir) / self.name


def _refuse_truth_values(section: type[BaseModel], tree: Any, prefix: str = "") -> None:
    """Raises ValueError where a number is meant and a truth value stands, which pydantic reads as 0 or 1."""
    for name, field in section.model_fields.items():
        value = tree.get(name) if isinstance(tree, dict) else None
        kinds = _types_in(field.annotation)
        values = value if isinstance(value, list | tuple) else [value]
        if kinds & {int, float} and bool not in kinds and any(isinstance(each, bool) for each in values):
            raise Mistake(f"{prefix}{name}: found {shown(value)}; expected a number")
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
                continue
            _refuse_truth_values(kind, value, f"{prefix}{name}.")
            for number, each in enumerate(value if isinstance(value, list) else []):
                _refuse_truth_values(kind, each, f"{prefix}{name}[{number}].")


def _types_in(annotation: Any) -> set[Any]:
    """The plain types a field may hold, out of unions, tuples, Annotated and the values of Literal."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return {type(value) for value in arguments}
    if typing.get_origin(annotation) is Annotated:
        return _types_in(arguments[0])
    return set().union(*map(_types_in, arguments)) if arguments else {annotation}
