"""The processes that benchmarks/train_step.py times: ours, plain PyTorch, Hugging Face Trainer with DeepSpeed.

    python -m benchmarks.train_peers NAME WORK

WORK is a `Work` as JSON. Each starts from the same weights, then reads numbers of steps from its standard input and
answers each with a line of JSON: seconds, and the loss of every step. Whatever else it prints goes to standard error.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

os.environ.update(
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", DS_ACCELERATOR="cpu", TOKENIZERS_PARALLELISM="0"
)

import torch

from model.config import ModelConfig
from model.exchange.hf_names import to_hf, weight_table
from model.network.transformer import Transformer
from training.config import OptimizerConfig, RunConfig

OPTIMIZER = OptimizerConfig(lr=3e-4, gradient_clipping=1.0)
SEED = 0


@dataclasses.dataclass(frozen=True)
class Work:
    """What every peer trains: rows that are whole documents, so that rows and packs are the same function."""

    model: dict[str, Any]
    """Keys of ModelConfig."""
    vocab_size: int
    num_rows: int
    """Rows of a batch."""
    length: int
    """Tokens of a row."""
    num_batches: int
    """Different batches, taken in turn."""
    threads: int
    zero_stage: int = 1
    """Of those that train with DeepSpeed."""

    @property
    def config(self) -> ModelConfig:
        """The model."""
        return ModelConfig(**self.model)

    @property
    def batches(self) -> list[torch.Tensor]:
        """int64 [rows, length] each; tokens are drawn with unequal odds, so that there is something to learn."""
        odds = 1.0 / torch.arange(1, self.vocab_size + 1)
        generator = torch.Generator().manual_seed(SEED)
        tokens = torch.multinomial(odds, self.num_batches * self.num_rows * self.length, True, generator=generator)
        return list(tokens.view(self.num_batches, self.num_rows, self.length))

    def hf_weights(self) -> dict[str, torch.Tensor]:
        """Weights of our freshly made model by Hugging Face's names."""
        table = weight_table(self.config, self.vocab_size)
        weights = Transformer(self.config, self.vocab_size, SEED).named_parameters()
        return {part: piece.detach() for name, weight in weights for part, piece in to_hf(name, weight, table)}


class Channel:
    """The line to the process that takes the time."""

    def __init__(self, answers: TextIO):
        self.answers = answers
        self.started = 0.0

    def commands(self) -> Iterator[int]:
        """Numbers of steps to take, as they come; the clock starts with each."""
        for line in sys.stdin:
            self.started = time.perf_counter()
            yield int(line)

    def answer(self, losses: list[float]) -> None:
        """Stops the clock."""
        seconds = time.perf_counter() - self.started
        self.answers.write(json.dumps({"seconds": seconds, "losses": losses}) + "\n")
        self.answers.flush()


def serve(channel: Channel, work: Work, step: Callable[[Any], float], batches: list[Any]) -> None:
    """Takes the steps that are asked for."""
    taken = 0
    for count in channel.commands():
        losses = [step(batches[(taken + i) % len(batches)]) for i in range(count)]
        channel.answer(losses)
        taken += count


def run_plain(channel: Channel, work: Work, fused: bool) -> None:
    """The hand-written loop."""
    from benchmarks.plain_model import PlainDecoder, plain_loop

    model = PlainDecoder(work.config, work.vocab_size, work.length)
    model.load_hf(work.hf_weights())
    serve(channel, work, plain_loop(model, OPTIMIZER, fused), work.batches)


def run_ours(channel: Channel, work: Work) -> None:
    """One rank of our trainer: its step, its engine, packed batches."""
    from datetime import timedelta

    from training.distributed import connect
    from training.hardware import keep_freed_memory
    from training.setup import build_engine
    from training.step import train_step

    config = RunConfig.model_validate(
        {
            "name": "benchmark",
            "seed": SEED,
            "tokenizer": {"path": "unused"},
            "data": {"path": "unused"},
            "model": work.model,
            "optimizer": OPTIMIZER.model_dump(),
            "schedule": {"name": "constant"},
            "training": {
                "steps": 1,
                "sequence_length": work.length,
                "micro_batch_size": work.num_rows,
                "global_batch_size": work.num_rows,
                "precision": "fp32",
                "zero_stage": work.zero_stage,
            },
        }
    )
    world = connect(timedelta(minutes=5))
    engine = build_engine(config, work.vocab_size, world)
    keep_freed_memory()  # as a rank does before its first step
    batches = [packed(rows) for rows in work.batches]
    serve(channel, work, lambda batch: train_step(engine, [batch], OPTIMIZER.lr, world).loss, batches)


def packed(rows: torch.Tensor) -> Any:
    """Rows [B, L] as a packed batch of B documents that each fill their row."""
    from data_pipeline.reading.packing import IGNORED, PackedBatch

    num_rows, length = rows.shape
    labels = rows.roll(-1, dims=1)
    labels[:, -1] = IGNORED
    return PackedBatch(
        tokens=rows.flatten(),
        positions=torch.arange(length).repeat(num_rows),
        cu_seqlens=torch.arange(0, rows.numel() + 1, length, dtype=torch.int32),
        prefix_lengths=torch.zeros(num_rows, dtype=torch.int32),
        labels=labels.flatten(),
        num_targets=num_rows * (length - 1),
        num_documents=num_rows,
        num_padding=0,
        num_cut=0,
        num_vanished=0,
    )


def run_hf(channel: Channel, work: Work, folder: Path) -> None:
    """Hugging Face Trainer on LlamaForCausalLM with DeepSpeed ZeRO, its own choice of AdamW."""
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False  # a minute of compiling for what only inference uses
    from torch.utils.data import SequentialSampler
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from model.exchange.convert import hf_config

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=work.num_rows,
        max_steps=10**6,
        learning_rate=OPTIMIZER.lr,
        lr_scheduler_type="constant",
        weight_decay=OPTIMIZER.weight_decay,
        adam_beta1=OPTIMIZER.betas[0],
        adam_beta2=OPTIMIZER.betas[1],
        adam_epsilon=OPTIMIZER.eps,
        max_grad_norm=OPTIMIZER.gradient_clipping,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        deepspeed={
            "zero_optimization": {"stage": work.zero_stage},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": OPTIMIZER.gradient_clipping,
            "train_micro_batch_size_per_gpu": work.num_rows,
            "gradient_accumulation_steps": 1,
        },
    )
    model = LlamaForCausalLM(LlamaConfig(**hf_config(work.config, work.vocab_size, work.length, torch.float32)))
    model.load_state_dict(work.hf_weights(), strict=not work.config.tie_embeddings)
    torch.set_num_threads(work.threads)

    class Asked(TrainerCallback):
        """Lets the trainer go on as many steps as asked for."""

        def __init__(self) -> None:
            self.commands = channel.commands()
            self.left = 0
            self.losses: list[float] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self.left:
                self.left = next(self.commands, 0)
            if not self.left:
                sys.exit(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.left -= 1
            if not self.left:
                channel.answer(self.losses)
                self.losses = []

    asked = Asked()

    class InOrder(Trainer):
        """The trainer as it is, but for the order of rows and a note of each loss."""

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            asked.losses.append(loss.item())
            return loss

    rows: Any = [{"input_ids": row, "labels": row} for batch in work.batches for row in batch]
    InOrder(model=model, args=arguments, train_dataset=rows, callbacks=[asked]).train()


def main() -> None:
    """Runs the peer that the command line names."""
    name, work = sys.argv[1], Work(**json.loads(sys.argv[2]))
    channel = Channel(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    torch.set_num_threads(work.threads)
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as folder:
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        if name == "ours":
            run_ours(channel, work)
        elif name == "hf":
            run_hf(channel, work, Path(folder))
        else:
            run_plain(channel, work, fused=name == "plain_fused")


if __name__ == "__main__":
    main()
