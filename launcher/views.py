"""What came of a stage, in words for people."""

from collections import Counter
from typing import TYPE_CHECKING

from common.json_lines import Record
from launcher.console import duration, loss, number
from launcher.goodput import Goodput
from launcher.local import TrainingResult
from launcher.stages import BuiltData, Converted, ImportedTokenizer, ImportedWeights, NewestCheckpoint, TrainedTokenizer

if TYPE_CHECKING:
    from launcher.gguf import ConvertedToGguf


def tokenizer(found: TrainedTokenizer) -> str:
    """A tokenizer: made or reused."""
    if found.reused:
        return f"reused {found.path}, {found.vocab_size:,} pieces"
    return f"{found.vocab_size:,} pieces from {found.training_bytes / 1e6:.1f} MB of text in {found.path}"


def data(built: BuiltData) -> str:
    """A dataset: made or reused, and what was left out."""
    train, held_out = f"{built.num_train_tokens:,} training", f"{built.num_validation_tokens:,} held-out tokens"
    kept = f"{built.num_documents:,} documents, {train} and {held_out}"
    warned = "".join(f"\nwarning: {warning}" for warning in built.warnings)
    if built.reused:
        return f"reused {built.path}: {kept}{warned}"
    by_filter: Counter[str] = Counter()
    for name, count in built.dropped.items():
        by_filter[name.partition(".")[0]] += count  # the rules of a filter are in manifest.json and dropped.jsonl
    dropped = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in by_filter.items())
    return f"{kept} in {built.path}" + (f"; dropped: {dropped}" if dropped else "") + warned


def training(result: TrainingResult) -> str:
    """How far a run is, and its losses."""
    last, evaluation = result.last, result.evaluation
    if result.already_finished:
        return f"reused {result.run_dir}: it had reached step {result.steps} already"
    if not last:
        return f"step {result.steps}; metrics.jsonl has no line of it"
    tokens = last.get("tokens_consumed")
    return (
        f"step {last['step']}: loss {loss(last['loss'])}"
        + (f", held-out loss {held_out_loss(evaluation)}" if evaluation else "")
        + (f", {number(float(tokens))} tokens" if tokens is not None else "")
    )


def goodput(found: Goodput) -> str:
    """How the time of a run went, the largest shares first."""
    shares = sorted(found.seconds.items(), key=lambda share: -share[1])
    parts = [f"{kind} {duration(seconds)}" for kind, seconds in shares if seconds and kind != "steps"]
    interrupted = f"; {len(found.interruptions)} interruptions" if found.interruptions else ""
    return (
        f"{found.ratio:.1%} of {duration(found.wall)} in steps; " + (", ".join(parts) or "nothing else") + interrupted
    )


def held_out_loss(evaluation: Record) -> str:
    """The loss of an evaluation, and how it stands to the best loss without context."""
    gain = evaluation["unigram_entropy"] - evaluation["loss"]
    side = "below" if gain >= 0 else "above"
    return f"{evaluation['loss']:.3f} nats, {abs(gain):.2f} {side} the unigram entropy of the same tokens"


def passed_over(newest: NewestCheckpoint) -> list[str]:
    """Damaged checkpoints and foreign files that were passed over, a sentence each."""
    damaged = newest.damaged.items()
    return [
        *(f"checkpoint {name} is damaged and was passed over: {'; '.join(faults)}" for name, faults in damaged),
        *(f"{newest.folder / name} is none of the checkpoint's files and is not read" for name in newest.unlisted),
    ]


def conversion(made: Converted) -> str:
    """A Hugging Face folder: made or reused, and what it was checked on."""
    name = made.checkpoint.folder.name
    if made.reused:
        return f"reused {made.out}, made from {name}"
    equal = f"{name} in {made.out}: logits and greedy tokens equal ours in transformers"
    if made.depths_left_out:
        equal += (
            f"; what predicts further tokens (multi_token_depths {made.depths_left_out}) is left out, no class has it"
        )
    if made.plain_tokenizer:
        return f"{equal}; no tokenizer of Hugging Face's is in it, {made.plain_tokenizer} gives the ids of the training"
    on = f"on {made.num_texts} held-out texts"
    if not made.num_texts:
        on = f"on awkward strings only, as {made.data} is not there"
    return f"{equal}, token ids {on}"


def gguf_conversion(made: "ConvertedToGguf") -> str:
    """A GGUF file: made or reused, and what it was checked by."""
    name = made.checkpoint.folder.name
    if made.reused:
        return f"reused {made.out}, made from {name}"
    return f"{name} in {made.out}: checked by {made.checked_by}"


def imported(made: ImportedWeights) -> str:
    """Imported weights, and how a run starts from them."""
    adapted = ""
    if made.adapted_to is not None:
        copies = "".join(f"\n  {place} is {source}" for place, source in made.copied.items())
        adapted = f"\nmade into shape {made.adapted_to} from the same weights, to be trained as that{copies}"
    drawn = "\nit had no head to predict tokens with; a new one was drawn, to be trained" if made.has_new_head else ""
    return (
        f"{made.architecture} in {made.out}: logits and greedy tokens equal those of transformers{drawn}{adapted}\n"
        f"to start from it: training.initial_weights: {made.out}, with the model section of {made.model_file}\n"
        f"{imported_tokenizer(made.tokenizer)}"
    )


def imported_tokenizer(found: ImportedTokenizer) -> str:
    """Whether `data build` takes the tokenizer of imported weights, and what it lacks."""
    if found.obstacle is not None:
        return f"its tokenizer cannot be used by data build: {found.obstacle}"
    lacks = "it has the special tokens of every objective"
    if found.lacks:
        lacks = (
            f"it has no {', '.join(found.lacks)}, which tokenizer.extend: true gives it for other objectives than "
            "next_token and prefix_lm"
        )
    return f"its tokenizer: tokenizer.path: {found.folder}, for data build; {lacks}"
