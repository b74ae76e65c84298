"""One optimizer step, and the loss that any cut of the global batch gives alike.

    micro-batches of this rank, and the targets of all ranks -> forward, backward each -> sum losses -> update

The loss is the cross-entropy summed over the targets of the global batch, divided by their number. Ranks and
micro-batches hold unequal numbers of targets, so the number is agreed upon before the first backward pass (feed.py does
it a batch ahead), and every micro-batch weighs in with its own sum. On a GPU nothing here waits for the device.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from common.mistakes import Mistake
from data_pipeline.reading.packing import PackedBatch
from model.config import MULTI_TOKEN_WEIGHT, ModelConfig
from model.flops import Work
from model.kernels.attention import AttentionPattern
from model.network.loss import IGNORED
from model.network.multi_token import places_on
from model.network.transformer import EncoderInput
from training.distributed import World
from training.engine import Engine
from training.guards_config import GuardsConfig
from training.spikes import Closed, Guard


@dataclasses.dataclass(frozen=True)
class Patterns:
    """Who attends to whom in one batch: here documents and prefix lengths become the model's attention patterns."""

    own: AttentionPattern
    """Of the batch's tokens among themselves."""
    encoder: AttentionPattern | None = None
    """Of the encoder's tokens among themselves, in an encoder-decoder."""
    cross: AttentionPattern | None = None
    """Of the batch's tokens to the encoder's, in an encoder-decoder."""
    model: ModelConfig | None = None
    """Whose windows and further depths have patterns of their own, to be counted and worked out ahead."""

    @classmethod
    def of(cls, batch: PackedBatch, model: ModelConfig | None = None) -> "Patterns":
        """Patterns of a batch that is still on the host."""
        own, stream = AttentionPattern.packed(batch.cu_seqlens, batch.prefix_lengths), batch.encoder
        if stream is None:
            return cls(own, model=model)
        encoder = AttentionPattern.packed(stream.cu_seqlens, stream.cu_seqlens.diff())
        return cls(own, encoder, AttentionPattern.cross(batch.cu_seqlens, stream.cu_seqlens), model)

    @property
    def window(self) -> int | None:
        """Tokens of the window in which some layers see."""
        return None if self.model is None else self.model.sliding_window

    @property
    def further(self) -> list[AttentionPattern]:
        """Of each further depth, as far as its layer sees."""
        if self.model is None:
            return []
        last = self.model.num_layers - 1
        depths = range(1, 1 + self.model.multi_token_depths)
        return [self.own.ahead(k).within(self.window if self.model.slides(last + k) else None) for k in depths]

    def num_pairs(self, num_documents: int) -> dict[str, int]:
        """Allowed pairs of the first so many documents, by their field in `StepCounts`."""
        parts = {"pairs": self.own, "encoder_pairs": self.encoder, "cross_pairs": self.cross}
        if self.window is not None:
            parts["window_pairs"] = self.own.within(self.window)
            parts["encoder_window_pairs"] = self.encoder and self.encoder.within(self.window)

        def total(*patterns: AttentionPattern) -> int:
            return sum(each.num_pairs for pattern in patterns for each in pattern.documents[:num_documents])

        counted = {name: total(pattern) for name, pattern in parts.items() if pattern}
        return counted | {"further_pairs": total(*self.further)}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Patterns":
        """The same patterns on another device."""
        own, encoder, cross = (
            part.to(device, non_blocking) if part is not None else None for part in (self.own, self.encoder, self.cross)
        )
        assert own is not None
        return Patterns(own, encoder, cross, self.model)

    def pin(self) -> "Patterns":
        """The same patterns in page-locked memory, from which a GPU copies in the background, with all worked out."""
        for part in (self.own, self.encoder, *self.further):
            _ = part and part.within(self.window)
        own, encoder, cross = (
            part.prepare().pin() if part is not None else None for part in (self.own, self.encoder, self.cross)
        )
        assert own is not None
        return Patterns(own, encoder, cross, self.model)


def model_inputs(batch: PackedBatch, patterns: Patterns) -> tuple:
    """What a Transformer takes besides labels: tokens, positions, pattern, and what its encoder reads, if any."""
    stream = batch.encoder
    if stream is None or patterns.encoder is None or patterns.cross is None:
        return batch.tokens, batch.positions, patterns.own, None
    encoder = EncoderInput(stream.tokens, stream.positions, patterns.encoder, patterns.cross)
    return batch.tokens, batch.positions, patterns.own, encoder


class LossModel(nn.Module):
    """A transformer that takes a packed batch and gives a plain tuple, the one kind of output ZeRO 3 looks into."""

    def __init__(self, model: nn.Module, z_loss: float = 0.0, further_weight: float = MULTI_TOKEN_WEIGHT):
        super().__init__()
        self.model = model
        self.z_loss, self.further_weight = z_loss, further_weight

    def forward(self, batch: PackedBatch, patterns: Patterns) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and cross-entropies [1 + D] of the next token and of each further depth; only the first has a gradient.

        fp32, summed over the targets.
        """
        tokens, positions, pattern, encoder = model_inputs(batch, patterns)
        output = self.model(tokens, positions, pattern, batch.labels, self.z_loss, encoder, self.further_weight)
        entropies = output.cross_entropy_sum[None]
        if output.further_sums is not None:
            entropies = torch.cat((entropies, output.further_sums))
        return output.loss_sum, entropies


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """What a step held over all ranks."""

    targets: int = 0
    """Tokens the loss was taken on."""
    tokens: int = 0
    """Tokens of documents, padding left out; those of an encoder beside the decoder are not among them."""
    encoder_tokens: int = 0
    """The same of the encoder of an encoder-decoder."""
    padding: int = 0
    """Tokens of padding in all streams."""
    documents_cut: int = 0
    """Documents that a sample's border cut."""
    documents_vanished: int = 0
    """Documents, or pieces of them, too short to hold a target."""
    tokens_left_out: int = 0
    """Tokens of samples for which a row had no room."""
    pairs: int = 0
    """Query-key pairs that attention allows within documents."""
    encoder_pairs: int = 0
    """The same in the encoder of an encoder-decoder."""
    cross_pairs: int = 0
    """The same from decoder to encoder."""
    window_pairs: int = 0
    """Of `pairs` those within the model's window, where it has one."""
    encoder_window_pairs: int = 0
    """Of `encoder_pairs` the same."""
    further_targets: int = 0
    """Tokens that the losses of all further depths were taken on."""
    further_pairs: int = 0
    """Query-key pairs of all further depths."""
    stops: int = 0
    """Ranks that were asked to stop."""

    @property
    def work(self) -> Work:
        """What arithmetic depends on."""
        return Work(
            self.tokens,
            self.pairs,
            self.encoder_tokens,
            self.encoder_pairs,
            self.cross_pairs,
            self.window_pairs or None,
            self.encoder_window_pairs,
            self.further_pairs or None,
            self.further_targets,
            self.targets,
        )


@dataclasses.dataclass(frozen=True)
class StepInput:
    """What a step of this rank takes, on the host."""

    batches: list[PackedBatch]
    """Its micro-batches."""
    patterns: list[Patterns]
    """Who attends to whom in each."""
    counts: StepCounts
    """What the global batch holds."""


class StepClock:
    """Seconds of the parts of a step: read off the CPU's clock, or off events on a GPU, which no mark waits for."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.started = self.ended = time.perf_counter()
        self.marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def _now(self) -> float | torch.cuda.Event:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, part: str) -> None:
        """Ends a part: the time since the last mark belongs to it."""
        self.marks.append((part, self._now()))

    def stop(self) -> None:
        """Ends the step, as this process sees it; the last call counts."""
        self.ended = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Seconds by part, and `step` from making the clock to `stop`; waits for the GPU to get to the last mark."""
        if self.on_gpu:
            self.marks[-1][1].synchronize()  # type: ignore[union-attr]
        parts: dict[str, float] = {}
        for (_, begin), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            length = begin.elapsed_time(end) / 1000 if self.on_gpu else end - begin  # type: ignore
            parts[name] = parts.get(name, 0.0) + length
        return parts | {"step": self.ended - self.started}


class Reading:
    """Scalars on their way from a device to the host; nobody waits for them before they are asked for."""

    def __init__(self, scalars: Sequence[torch.Tensor]):
        stacked = torch.stack([scalar.detach().double().reshape(()) for scalar in scalars])
        self._event: torch.cuda.Event | None = None
        self._host = stacked
        if stacked.device.type == "cuda":
            self._host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> list[float]:
        """Waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


class StepResult:
    """What came of a step, the same on every rank but for its own. Its figures are waited for when asked for."""

    def __init__(self, counts: StepCounts, where: str, clock: StepClock, scalars: Mapping[str, torch.Tensor]):
        """`scalars` [] or [N] by name: own, total, norm, held and limits, as the properties say."""
        self.counts = counts
        """What the step held."""
        self.clock = clock
        """Its clock."""
        self.where = where
        """Step and samples, in words."""
        self._sizes = {name: scalar.numel() for name, scalar in scalars.items()}
        self._reading = Reading([each for scalar in scalars.values() for each in scalar.reshape(-1)])

    @functools.cached_property
    def _values(self) -> dict[str, list[float]]:
        values = iter(self._reading.values())
        return {name: list(itertools.islice(values, size)) for name, size in self._sizes.items()}

    @property
    def own_losses(self) -> list[float]:
        """Of each micro-batch of this rank, summed over its targets."""
        return self._values["own"]

    @property
    def multi_token_loss(self) -> float | None:
        """Cross-entropy in nats per target of the further depths together; None where there are none."""
        further = self._values["total"][1:]
        return sum(further) / max(self.counts.further_targets, 1) if further else None

    @property
    def loss(self) -> float:
        """Cross-entropy in nats per target of the global batch."""
        return self._values["total"][0] / self.counts.targets

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping."""
        return self._values["norm"][0]

    @property
    def held(self) -> bool:
        """Whether the step was passed over: it changed nothing."""
        return bool(self._values["held"][0])

    @property
    def limits(self) -> tuple[float, float]:
        """What loss and norm could have been at most; NaN where nothing said so."""
        loss, norm = self._values["limits"]
        return loss, norm

    @functools.cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of this rank in `forward`, `backward` and `optimizer`, and `step` for all of it."""
        return self.clock.seconds()

    def figures(self) -> dict[str, float | None]:
        """Losses and norm; None for what is no number, which JSON has no word for."""
        further = {} if self.multi_token_loss is None else {"multi_token_loss": self.multi_token_loss}
        values = {"loss": self.loss, **further, "grad_norm": self.grad_norm}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def unsound_ranks(self, world: World) -> tuple[int, list[int]]:
        """How many ranks have a loss that is no number, and the lowest of them; all ranks call it together."""
        mine = [] if math.isfinite(sum(self.own_losses)) else [world.rank]
        return world.plane.join((len(mine), mine), _joined)

    def why_held(self, count: int, lowest: Sequence[int]) -> str:
        """Why it was passed over, in words, given `unsound_ranks`."""
        if count or not math.isfinite(self.loss):
            named = ", ".join(map(str, lowest)) + (f" and {count - len(lowest)} more" if count > len(lowest) else "")
            what = "no number" if math.isfinite(self.loss) else self.loss  # ranks that share layers are counted once
            return f"the loss is {what} (rank {named or 'sum'})"
        if not (math.isfinite(self.grad_norm) and self.grad_norm >= 0):
            return f"the gradient is not finite though the loss is {self.loss:.4g}"
        pairs = zip(("loss", "gradient norm"), (self.loss, self.grad_norm), self.limits, strict=True)
        beyond = [f"the {name} is {value:.4g}, above {limit:.4g}" for name, value, limit in pairs if value > limit]
        return " and ".join(beyond)

    def check(self, world: World) -> None:
        """Raises ValueError on every rank when the step was passed over; all ranks call it together."""
        if self.held:
            why = self.why_held(*self.unsound_ranks(world))
            raise Mistake(f"{self.where}: {why}, no weight was changed; {ADVICE}")


def begin_count(
    batches: Sequence[PackedBatch], patterns: Sequence[Patterns], world: World, stop: bool = False
) -> Callable[[], StepCounts]:
    """Begins to count over all ranks, which also learn how many of them were asked to stop; call what it returns.

    Ranks that read the same samples count them once, but each of them may be the one that a signal came to.
    """
    mine = [0] * len(dataclasses.fields(StepCounts))
    for batch, pattern in zip(batches, patterns, strict=True) if world.speaks else ():
        mine = [a + b for a, b in zip(mine, dataclasses.astuple(_count(batch, pattern)), strict=True)]
    mine[-1] = int(stop)
    pending = world.plane.begin_sum(mine)
    return lambda: StepCounts(*map(int, pending.result()))


def count(batches: Sequence[PackedBatch], patterns: Sequence[Patterns], world: World, stop: bool = False) -> StepCounts:
    """Counts over all ranks, at once."""
    return begin_count(batches, patterns, world, stop)()


def _count(batch: PackedBatch, patterns: Patterns) -> StepCounts:
    stream = batch.encoder
    encoder_padding = stream.num_padding if stream else 0
    return StepCounts(
        targets=batch.num_targets,
        tokens=len(batch.tokens) - batch.num_padding,
        encoder_tokens=len(stream.tokens) - encoder_padding if stream else 0,
        padding=batch.num_padding + encoder_padding,
        documents_cut=batch.num_cut,
        documents_vanished=batch.num_vanished,
        tokens_left_out=batch.num_left_out,
        # behind the documents there is padding, which nobody needs
        **patterns.num_pairs(batch.num_documents),
        further_targets=sum(
            int((places_on(batch.tokens, batch.labels, batch.positions, depth)[1] != IGNORED).sum())
            for depth in range(1, 1 + len(patterns.further))
        ),
    )


def train_step(
    engine: Engine, batches: Sequence[PackedBatch], lr: float, world: World, *, where: str = "step"
) -> StepResult:
    """A step by itself, counted, trained and checked; all ranks call it together with their micro-batches.

    Raises ValueError when the global batch has no target, and when loss or gradient are not finite.
    """
    patterns = [Patterns.of(batch) for batch in batches]
    data = StepInput(list(batches), patterns, count(batches, patterns, world))
    result = run_step(engine, data, lr, world, where, Guard(GuardsConfig(), world.device))
    result.check(world)
    return result


def run_step(engine: Engine, data: StepInput, lr: float, world: World, where: str, guard: Guard) -> StepResult:
    """Trains on the micro-batches of this rank; all ranks call it together. `where` names step and samples in errors.

    Raises ValueError when the global batch has no target. A step that `guard` passes over changes nothing, and on a GPU
    nobody waits for its verdict: the result tells who asks.
    """
    num_passes = len(data.batches)
    assert num_passes == engine.num_micro_batches, f"{num_passes} batches for {engine.num_micro_batches} passes"
    clock = StepClock(world.device)
    if data.counts.targets == 0:
        raise Mistake(f"{where}: no token of the global batch is a target; look at the data there")
    # Averaging over the ranks divides by their number, which is none of the loss's business.
    weight = world.mesh.replicas.size / data.counts.targets
    local, own = torch.zeros(1, dtype=torch.float64, device=world.device), list[torch.Tensor]()
    for index, (batch, pattern) in enumerate(zip(data.batches, data.patterns, strict=True)):
        batch = batch.to(world.device, non_blocking=True)
        loss, cross_entropies = engine(batch, pattern.to(world.device, non_blocking=True))
        clock.mark("forward")
        engine.backward(loss * weight)
        own.append(cross_entropies[0].double())
        local = local + cross_entropies.double()
        clock.mark("backward")
        if index < num_passes - 1:
            engine.step(lr)
    total, unsound = _over_ranks(local, world)
    verdict: list[torch.Tensor] = []

    def hold_back(norm: torch.Tensor) -> torch.Tensor:
        figures = total[0] / data.counts.targets, norm.to(total.device, torch.float64)
        verdict.append(guard.judge(*figures, unsound))
        return verdict[0]

    norm = engine.step(lr, hold_back)
    clock.mark("optimizer")
    scalars = {"own": torch.stack(own), "total": total, "norm": norm, "held": verdict[0], "limits": guard.limits}
    result = StepResult(data.counts, where, clock, {name: each.to(total.device) for name, each in scalars.items()})
    clock.stop()
    return result


def run_again(
    engine: Engine, data: StepInput, world: World, where: str, note: Callable[[str, torch.Tensor], None]
) -> StepResult:
    """A step once more, which changes nothing; `note` is given what `Engine.watching_gradients` says."""
    with engine.watching_gradients(note):
        return run_step(engine, data, 0.0, world, where, Closed(GuardsConfig(), world.device))


def _over_ranks(local: torch.Tensor, world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [1 + D] summed over the ranks, those that share layers counted once, and whether any rank's is unsound."""
    counted = local if world.mesh.tensor.rank == 0 else torch.zeros_like(local)
    sums = world.sum_on_device(torch.cat([counted, (~local[:1].isfinite()).double()]))
    return sums[:-1], sums[-1] > 0


ADVICE = "resume from the last checkpoint with a lower optimizer.lr or more schedule.warmup_steps, or look at the data"
SHOWN_RANKS = 8
"""Ranks with a loss that is no number that an error names; a machine's worth tells whether it is one machine."""


def _joined(a: tuple[int, list[int]], b: tuple[int, list[int]]) -> tuple[int, list[int]]:
    """How many ranks there are in both, and the lowest of them."""
    return a[0] + b[0], sorted([*a[1], *b[1]])[:SHOWN_RANKS]
