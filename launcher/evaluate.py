"""`shardline evaluate`: how a run's newest checkpoint answers multiple-choice questions."""

from pathlib import Path
from typing import TYPE_CHECKING

from launcher import views
from launcher.console import StageProgress, console, say
from launcher.run_folder import existing
from launcher.stages import newest_checkpoint, tokenizer_of

if TYPE_CHECKING:
    from model.network.transformer import Transformer
    from training.config import RunConfig
    from training.scoring import ChoiceResult


def evaluate(run_dir: Path, tasks: list[Path]) -> "dict[str, ChoiceResult]":
    """Result of each file of questions.

    Raises ValueError when there is no checkpoint, a file is not right, or the tokenizer is not that of the training.
    """
    from data_pipeline.manifest import Manifest
    from data_pipeline.questions import read_questions
    from data_pipeline.vocabulary import Vocabulary
    from training.scoring import score_questions
    from training.state.folder import reading

    _, config = existing(run_dir)
    questions = {str(task): read_questions(task) for task in tasks}
    with reading(run_dir):
        newest = newest_checkpoint(run_dir)
        folder = newest.folder
        for line in views.passed_over(newest):
            say(f"  {line}")
        tokenizer = tokenizer_of(config, folder)
        vocabulary = Vocabulary.of(Manifest.load(config.data.path))
        with StageProgress("loading the checkpoint") as progress:
            progress.note(f"loading {folder.name} of {run_dir}")
            model = _load_model(folder, config)
    results = {}
    for task, asked in questions.items():
        with StageProgress(f"asking {task}") as progress:
            results[task] = score_questions(
                model,
                asked,
                tokenizer.encode,
                vocabulary,
                config.objective,
                config.training.sequence_length,
                progress.update,
            )
    return results


def _load_model(folder: Path, config: "RunConfig") -> "Transformer":
    import torch

    from model.config import ModelConfig
    from model.network.transformer import Transformer
    from training.scoring import execution
    from training.state.identity import read_saved
    from training.state.loading import stream_weights

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    saved = read_saved(folder).identity.model
    trained = ModelConfig(**{**config.model.model_dump(), **saved})
    model_config, dtype = execution(trained, device)
    with torch.device("meta"):
        model = Transformer(model_config, saved["vocab_size"])
    state = {name: weight.to(device, dtype) for name, weight in stream_weights(folder)}
    if model_config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state, assign=True)
    return model.eval()


def show(results: "dict[str, ChoiceResult]") -> None:
    """Prints the results as a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="dim")
    for column in ("task", "questions", "accuracy", "accuracy per byte", "chance"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, result in results.items():
        shares = (result.accuracy, result.accuracy_per_byte, result.chance)
        table.add_row(escape(task), f"{result.questions:,}", *(f"{share:.1%}" for share in shares))
    console.print(table)
