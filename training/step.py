"""One optimizer step, and the loss that any cut of the global batch gives alike.

    micro-batches of this rank -> count targets on all ranks -> forward, backward each -> sum losses -> update

The loss is the cross-entropy summed over the targets of the global batch, divided by their number. Ranks and
micro-batches hold unequal numbers of targets, so the number is agreed upon before the first backward pass, and every
micro-batch weighs in with its own sum.
"""

import dataclasses
import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from common.mistakes import Mistake
from data_pipeline.reading.packing import PackedBatch
from model.flops import Work
from model.kernels.attention import AttentionPattern
from model.network.transformer import EncoderInput
from training.distributed import World
from training.engine import Engine


@dataclasses.dataclass(frozen=True)
class Patterns:
    """Who attends to whom in one batch: here documents and prefix lengths become the model's attention patterns."""

    own: AttentionPattern
    """Of the batch's tokens among themselves."""
    encoder: AttentionPattern | None = None
    """Of the encoder's tokens among themselves, in an encoder-decoder."""
    cross: AttentionPattern | None = None
    """Of the batch's tokens to the encoder's, in an encoder-decoder."""

    @classmethod
    def of(cls, batch: PackedBatch) -> "Patterns":
        """Patterns of a batch that is still on the host."""
        own, stream = AttentionPattern.packed(batch.cu_seqlens, batch.prefix_lengths), batch.encoder
        if stream is None:
            return cls(own)
        encoder = AttentionPattern.packed(stream.cu_seqlens, stream.cu_seqlens.diff())
        return cls(own, encoder, AttentionPattern.cross(batch.cu_seqlens, stream.cu_seqlens))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Patterns":
        """The same patterns on another device."""
        own, encoder, cross = (
            part.to(device, non_blocking) if part is not None else None for part in (self.own, self.encoder, self.cross)
        )
        assert own is not None
        return Patterns(own, encoder, cross)


def model_inputs(batch: PackedBatch, patterns: Patterns) -> tuple:
    """What a Transformer takes besides labels: tokens, positions, pattern, and what its encoder reads, if any."""
    stream = batch.encoder
    if stream is None or patterns.encoder is None or patterns.cross is None:
        return batch.tokens, batch.positions, patterns.own, None
    encoder = EncoderInput(stream.tokens, stream.positions, patterns.encoder, patterns.cross)
    return batch.tokens, batch.positions, patterns.own, encoder


class LossModel(nn.Module):
    """A transformer that takes a packed batch and gives a plain tuple, the one kind of output ZeRO 3 looks into."""

    def __init__(self, model: nn.Module, z_loss: float = 0.0):
        super().__init__()
        self.model = model
        self.z_loss = z_loss

    def forward(self, batch: PackedBatch, patterns: Patterns) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, cross-entropy), fp32 scalars summed over the targets; only the first carries a gradient."""
        tokens, positions, pattern, encoder = model_inputs(batch, patterns)
        output = self.model(tokens, positions, pattern, batch.labels, self.z_loss, encoder)
        return output.loss_sum, output.cross_entropy_sum


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
    stops: int = 0
    """Ranks that were asked to stop."""

    @property
    def work(self) -> Work:
        """What arithmetic depends on."""
        return Work(self.tokens, self.pairs, self.encoder_tokens, self.encoder_pairs, self.cross_pairs, self.targets)


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What came of a step; the same on every rank but for the seconds."""

    loss: float
    """Cross-entropy in nats per target of the global batch."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    counts: StepCounts
    """What the step held."""
    seconds: dict[str, float]
    """Seconds of this rank in `forward`, `backward` and `optimizer`, and `step` for all of it."""


class StepClock:
    """Seconds of the parts of a step: read off the CPU's clock, or off events on a GPU, which no mark waits for."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.started = time.perf_counter()
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

    def seconds(self) -> dict[str, float]:
        """Seconds by part, and `step` since the clock was made; waits for the GPU to get to the last mark."""
        if self.on_gpu:
            self.marks[-1][1].synchronize()  # type: ignore[union-attr]
        parts: dict[str, float] = {}
        for (_, begin), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            length = begin.elapsed_time(end) / 1000 if self.on_gpu else end - begin  # type: ignore
            parts[name] = parts.get(name, 0.0) + length
        return parts | {"step": time.perf_counter() - self.started}


def count(batches: Sequence[PackedBatch], patterns: Sequence[Patterns], world: World, stop: bool = False) -> StepCounts:
    """Counts over all ranks; with one exchange they also learn whether one of them was asked to stop."""
    mine = [0] * len(dataclasses.fields(StepCounts))
    for batch, pattern in zip(batches, patterns, strict=True):
        mine = [a + b for a, b in zip(mine, dataclasses.astuple(_count(batch, pattern)), strict=True)]
    mine[-1] = int(stop)
    return StepCounts(*map(int, world.sum(mine)))


def _count(batch: PackedBatch, patterns: Patterns) -> StepCounts:
    stream = batch.encoder
    encoder_padding = stream.num_padding if stream else 0
    # Behind the documents there is padding, which nobody needs.
    real = slice(batch.num_documents)
    pairs = [
        sum(document.num_pairs for document in pattern.documents[real]) if pattern else 0
        for pattern in (patterns.own, patterns.encoder, patterns.cross)
    ]
    return StepCounts(
        targets=batch.num_targets,
        tokens=len(batch.tokens) - batch.num_padding,
        encoder_tokens=len(stream.tokens) - encoder_padding if stream else 0,
        padding=batch.num_padding + encoder_padding,
        documents_cut=batch.num_cut,
        documents_vanished=batch.num_vanished,
        tokens_left_out=batch.num_left_out,
        pairs=pairs[0],
        encoder_pairs=pairs[1],
        cross_pairs=pairs[2],
    )


def train_step(
    engine: Engine, batches: Sequence[PackedBatch], lr: float, world: World, *, stop: bool = False, where: str = "step"
) -> StepResult:
    """Trains on the micro-batches of this rank, on the host; all ranks call it together.

    Raises ValueError, before weights change, when the loss is not finite or the global batch has no target, and
    after it when the gradient is not finite; `where` names step and samples in the message.
    """
    assert len(batches) == engine.num_micro_batches, f"{len(batches)} batches for {engine.num_micro_batches} passes"
    clock = StepClock(world.device)
    patterns = [Patterns.of(batch) for batch in batches]
    counts = count(batches, patterns, world, stop)
    if counts.targets == 0:
        raise Mistake(f"{where}: no token of the global batch is a target; look at the data there")
    # Averaging over the ranks divides by their number, which is none of the loss's business.
    weight = world.mesh.data.size / counts.targets
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for index, (batch, pattern) in enumerate(zip(batches, patterns, strict=True)):
        batch = batch.to(world.device, non_blocking=True)
        loss, cross_entropy = engine(batch, pattern.to(world.device, non_blocking=True))
        clock.mark("forward")
        engine.backward(loss * weight)
        total += cross_entropy
        clock.mark("backward")
        if index < len(batches) - 1:
            engine.step(lr)
    mean = _checked_loss(float(total), counts.targets, world, where)
    norm = engine.step(lr)
    clock.mark("optimizer")
    if not (math.isfinite(norm) and norm >= 0):
        raise Mistake(f"{where}: the gradient is not finite though the loss is {mean:.4g}; {_ADVICE}")
    return StepResult(mean, norm, counts, clock.seconds())


_ADVICE = "resume from the last checkpoint with a lower optimizer.lr or more schedule.warmup_steps, or look at the data"


def _checked_loss(local: float, num_targets: int, world: World, where: str) -> float:
    total = world.sum([local])[0]
    if math.isfinite(total):
        return total / num_targets
    bad = [str(rank) for rank, fine in enumerate(world.gather(math.isfinite(local))) if not fine]
    raise Mistake(f"{where}: the loss is {total} (rank {', '.join(bad) or 'sum'}), no weight was changed; {_ADVICE}")
