"""Models that are asked in text, by where they lie: in a run, or in a folder in Hugging Face's format.

run    -> its newest sound checkpoint; its own tokenizer, objective and length
folder -> its weights by our names (model/exchange), its tokenizer's data; nothing of it is run
       -> TextModel: the same network for both, so that every shape is asked in its own form
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.mistakes import Mistake, cut
from launcher import views
from launcher.console import StageProgress, say
from launcher.places import CONFIG
from launcher.run_folder import existing
from launcher.stages import newest_checkpoint, tokenizer_of

if TYPE_CHECKING:
    import torch

    from data_pipeline.config import ObjectiveConfig
    from data_pipeline.reading.ranking import Manner
    from model.config import ModelConfig
    from model.network.transformer import Transformer
    from training.text_model import TextModel

LONGEST = 4096
"""Tokens that a folder's model reads at once where its config does not say for how many it was made."""
FOREIGN_OBJECTIVES = {"causal": "next_token", "prefix": "prefix_lm", "encoder": "masked_lm", "encdec": "prefix_lm"}
"""How a folder is asked that does not say what it was trained on, by its shape: to continue, or to fill masks."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A model that is ready to be asked."""

    model: "TextModel"
    name: str
    """The checkpoint of a run, or the class of a folder."""
    step: int | None = None
    """That of the checkpoint."""


def load(where: Path, length: int | None = None) -> Found:
    """The model of a run or of a folder; `length` in place of the tokens that it reads at once.

    Raises ValueError when it is neither, when there is no checkpoint, when the tokenizer is not that of the training,
    or when a folder holds what has no place in ours.
    """
    if (where / CONFIG).is_file():
        found = _of_run(where)
    elif (where / "config.json").is_file():
        found = _of_folder(where)
    else:
        raise Mistake(f"{where}: neither a run nor an exported folder, for it has no {CONFIG} and no config.json")
    return (
        found if length is None else dataclasses.replace(found, model=dataclasses.replace(found.model, length=length))
    )


def _of_run(run_dir: Path) -> Found:
    from data_pipeline.manifest import Manifest
    from data_pipeline.reading.ranking import Manner
    from data_pipeline.vocabulary import Vocabulary
    from model.config import ModelConfig
    from training.state.folder import reading, step_of
    from training.state.identity import read_saved
    from training.state.loading import stream_weights
    from training.text_model import TextModel

    _, config = existing(run_dir)
    with reading(run_dir):
        newest = newest_checkpoint(run_dir)
        folder = newest.folder
        for line in views.passed_over(newest):
            say(f"  {line}")
        tokenizer = tokenizer_of(config, folder)
        vocabulary = Vocabulary.of(Manifest.load(config.data.path))
        manner = Manner.of(config.objective, config.model.shape, vocabulary)
        with StageProgress("loading the checkpoint") as progress:
            progress.note(f"loading {folder.name} of {run_dir}")
            saved = read_saved(folder).identity.model
            trained = ModelConfig(**{**config.model.model_dump(), **saved})
            network = _network(trained, saved["vocab_size"], stream_weights(folder))
    model = TextModel(
        network=network,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        manner=manner,
        length=config.training.sequence_length,
        start_id=vocabulary.bos,
        eos_id=vocabulary.eos,
        pad_id=vocabulary.pad,
    )
    return Found(model, folder.name, step_of(folder))


def _of_folder(path: Path) -> Found:
    import numpy as np

    from model.exchange.hf_names import from_hf
    from model.exchange.in_transformers import quiet_transformers
    from model.exchange.their_folder import HfFolder, correspondence, load_tokenizer
    from training.text_model import TextModel

    with quiet_transformers(), StageProgress("loading the folder") as progress:
        theirs = HfFolder.read(path)
        imported, table = correspondence(theirs)
        progress.note(f"loading {imported.architecture.name} of {path}")
        with theirs.clean_view() as view:
            tokenizer = load_tokenizer(theirs, view)
        network = _network(imported.config, imported.vocab_size, from_hf(theirs.files.read, table))

    def encode(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), np.int64)

    ends = [tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id]
    eos_id = next((index for index in ends if index is not None), None)
    if eos_id is None:
        raise Mistake(f"{path}: its tokenizer names no token that ends a text; name its eos_token")
    model = TextModel(
        network=network,
        encode=encode,
        decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        manner=_manner(path, tokenizer, imported.config, eos_id),
        length=imported.max_positions or LONGEST,
        start_id=theirs.start_id,
        eos_id=eos_id,
        pad_id=eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    return Found(model, imported.architecture.name)


def _manner(path: Path, tokenizer: Any, config: "ModelConfig", eos_id: int) -> "Manner":
    """How a folder is asked: as it was trained where it says so, else with what its tokenizer puts around a text."""
    from data_pipeline.config import ObjectiveConfig
    from data_pipeline.reading.ranking import Manner
    from data_pipeline.tokenizer import ROLES
    from data_pipeline.vocabulary import Vocabulary

    known, first = tokenizer.get_vocab(), "<extra_id_0>"
    special = {name: known[piece] for name, piece in ROLES.items() if piece in known}
    if tokenizer.mask_token_id is not None:
        special["mask"] = tokenizer.mask_token_id
    bos_id = eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    blanks = {"first_sentinel": known[first], "num_sentinels": 1} if first in known else {}
    vocabulary = Vocabulary(len(known), bos_id, eos_id, special, **blanks)
    if (objective := _objective(path)) is not None:
        return Manner.of(objective, config.shape, vocabulary)
    usual = ObjectiveConfig.model_validate({"name": FOREIGN_OBJECTIVES[config.shape]})
    manner = Manner.of(usual, config.shape, vocabulary)
    opening, closing = _around(tokenizer)
    reads_whole = config.shape in ("encoder", "encdec")
    return dataclasses.replace(manner, opening=opening, closing=closing if reads_whole else ())


def _objective(path: Path) -> "ObjectiveConfig | None":
    from pydantic import ValidationError

    from data_pipeline.config import ObjectiveConfig
    from model.exchange.convert import MARKER, objective_of

    said = objective_of(path)
    try:
        return None if said is None else ObjectiveConfig.model_validate(said)
    except ValidationError as error:
        raise Mistake(f"{path / MARKER}: its objective is none ({cut(str(error))}); export the folder again") from None


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a plain call of a tokenizer puts before and behind a text."""
    inner = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    begin = next((at for at in range(len(whole)) if whole[at : at + len(inner)] == inner), 0)
    return tuple(whole[:begin]), tuple(whole[begin + len(inner) :])


def _network(trained: "ModelConfig", vocab_size: int, weights: "Iterable[tuple[str, torch.Tensor]]") -> "Transformer":
    """The network with weights by our names, on this machine's device and in the dtype it is asked in."""
    import torch

    from model.network.transformer import Transformer
    from training.text_model import execution

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, dtype = execution(trained, device)
    with torch.device("meta"):
        network = Transformer(config, vocab_size)
    state = {name: weight.to(device, dtype) for name, weight in weights}
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    network.load_state_dict(state, assign=True)
    return network.eval()
