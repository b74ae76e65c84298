"""What data is made of: the `tokenizer:`, `data:` and `objective:` sections of a config file."""

import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from common.mistakes import Mistake
from common.section import Place, Section
from data_pipeline.filters.settings import FilterSettings

MOST_PIECES, MOST_CHARACTERS = 2**24, 2**40
"""Pieces of a vocabulary and characters of a document: far more than anybody has."""
MOST_MEGABYTES = 1e9
"""A petabyte."""


SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Weight = Annotated[float, Field(gt=0, le=1e12)]
WeightOrNone = Annotated[float, Field(ge=0, le=1e12)]
MOST_SAMPLES = 2**42


class SourceConfig(Section):
    """One place documents come from."""

    path: Place
    """Path, glob (`**` reaches into subfolders) or fsspec URL such as `s3://bucket/part-*.jsonl.zst`."""
    format: Literal["auto", "jsonl", "parquet", "arrow", "csv", "tsv", "text", "html", "warc", "megatron"] = "auto"
    """How to read the files; `auto` goes by their endings and refuses those it does not know; .gz and .zst are read."""
    text_key: str = "text"
    """Field (jsonl) or column (other formats) that holds the document's text; `meta.text` is text within meta."""
    document: Literal["file", "line"] = "file"
    """For text files: the whole file is one document, or every line is."""
    name: SourceName | None = None
    """What it is called in `mix`, metrics and objectives; empty takes the last folder or file that `path` names."""


class TokenizerConfig(Section):
    """One trained here - sentencepiece BPE with byte fallback, which keeps every character (but U+2581 comes back as a
    blank) - or somebody else's.
    """

    path: Place
    """Folder of the tokenizer: `tokenizer.model` once trained, or another's `tokenizer.json` or `*.tiktoken`."""
    kind: Literal["auto", "sentencepiece", "hugging_face", "tiktoken"] = "auto"
    """Which of the tokenizers in the folder; `auto` refuses to choose between several of others."""
    vocab_size: int = Field(default=32000, ge=300, le=MOST_PIECES)
    """Pieces in the vocabulary, special ones included."""
    num_sentinels: int = Field(default=256, ge=0, le=MOST_PIECES)
    """Control symbols `<extra_id_0>` ... kept for the denoising objectives; one hidden span of a document takes one."""
    extend: bool = False
    """Gives a tokenizer of others the special pieces it lacks (`<mask>`, `<cls>`, `<sep>`, `[R]`, `[S]`, `[X]` and
    `num_sentinels` sentinels), as ids after its own; needed for objectives that hide tokens."""
    bos_token: str | None = Field(default=None, min_length=1)
    """Special piece of another's tokenizer that begins documents; empty means its own, or else its eos."""
    eos_token: str | None = Field(default=None, min_length=1)
    """Special piece of another's tokenizer that ends documents; empty means its own."""
    split_pattern: str | None = Field(default=None, min_length=1)
    """For tiktoken's ranks: name of their encoding (`gpt2`, `cl100k_base`, `llama3` ...) or a regular expression that
    cuts text into words; empty means the encoding that the file is named after."""
    training_megabytes: float = Field(default=100.0, gt=0, le=MOST_MEGABYTES)
    """Text sampled from the sources to train on, in MB (10^6 bytes)."""
    fast_encoder: Literal["auto", "off"] = "auto"
    """`auto` uses a faster encoder once it has given the same ids on a sample of the corpus; `off` is the original."""


class DeduplicateConfig(Section):
    """What is left out because it is there already; one word, such as `near`, is short for `documents`."""

    documents: Literal["none", "exact", "near"] = "exact"
    """`exact` keeps the first of identical documents, wherever in the sources they are; `near` also keeps only one of
    those that are nearly the same, each removed one compared with the very one that stays."""
    lines: Literal["none", "exact"] = "none"
    """`exact` takes long lines out of a document that an earlier one has; what is left of it stays."""
    similarity: float = Field(default=0.8, ge=0.5, le=1)
    """near: share of all runs of five words in either text that both must have (Jaccard)."""
    keep: Literal["first", "longest"] = "first"
    """near: which document stays, the first in the order of the sources or the longest."""
    alarm_share: float = Field(default=0.3, gt=0, le=1)
    """near: share of a source's documents whose loss to near copies is told as a warning."""

    @model_validator(mode="after")
    def _keys_are_used(self):
        for key in ("similarity", "keep", "alarm_share"):
            if self.documents != "near" and getattr(self, key) != type(self).model_fields[key].default:
                raise Mistake(f"{key}: it is used with documents: near only, and documents is {self.documents}")
        return self

    @model_serializer(mode="wrap")
    def _short(self, serialize: SerializerFunctionWrapHandler) -> Any:
        fields = type(self).model_fields
        said = {key: value for key, value in serialize(self).items() if value != fields[key].default}
        return self.documents if said.keys() <= {"documents"} else {"documents": self.documents, **said}

    @property
    def can_grow(self) -> bool:
        """Whether sources can be added to a dataset later."""
        return self.documents == "exact" and self.lines == "none"

    @property
    def decisive(self) -> Any:
        """What of it decides which documents are left, as it is written down with a dataset."""
        return self.model_copy(update={"alarm_share": type(self).model_fields["alarm_share"].default}).model_dump()


def _from_word(value: Any) -> Any:
    return {"documents": value} if isinstance(value, str) else value


Deduplicate = Annotated[
    DeduplicateConfig,
    BeforeValidator(_from_word, json_schema_input_type=Literal["none", "exact", "near"] | DeduplicateConfig),
]


class MixSourceConfig(Section):
    """One source of a mix: one of `data.sources` by its name, or with `path` a whole dataset."""

    name: SourceName
    """Name of one of `data.sources`; with `path`, any other."""
    path: Place | None = None
    """Folder of a dataset that was built with the same tokenizer, and is drawn from as a whole."""
    weight: WeightOrNone | None = None
    """Share of the samples, relative to the other sources; 0 draws nothing until a stage does."""
    epochs: float | None = Field(default=None, gt=0, le=1e6)
    """In place of weights: how often the source is gone through while the others are as often as they say; empty is 1.
    """
    max_epochs: float | None = Field(default=None, gt=0, le=1e6)
    """Drawn no more once the run has gone through it so often; the others fill its place."""
    max_samples: int | None = Field(default=None, ge=1, le=MOST_SAMPLES)
    """The same, in samples."""
    max_tokens: int | None = Field(default=None, ge=1, le=2**60)
    """The same, in tokens."""


class MixStageConfig(Section):
    """Other weights from some point of the run on."""

    from_step: int | None = Field(default=None, ge=1, le=10**9)
    """The first step that they hold for is the one after so many."""
    from_tokens: int | None = Field(default=None, ge=1, le=2**60)
    """The same in tokens, a sample counted as `training.sequence_length` of them; rounded up to a whole step."""
    weights: dict[SourceName, WeightOrNone] = Field(min_length=1)
    """Weight of each source; those that are not named draw nothing."""

    @model_validator(mode="after")
    def _begins_somewhere(self):
        if (self.from_step is None) == (self.from_tokens is None):
            raise Mistake("from_step: a stage begins with from_step or from_tokens; give one of them")
        if not any(self.weights.values()):
            raise Mistake("weights: all are 0, so that the stage would draw nothing; give a source a weight")
        return self


class MixConfig(Section):
    """In which shares a run draws from its sources; it may change while a run goes on, and no sample comes twice."""

    sources: list[MixSourceConfig] = Field(min_length=1)
    """What is drawn from; sources that are not named are left aside."""
    stages: list[MixStageConfig] = Field(default_factory=list)
    """Weights that take the place of the sources' own, stage by stage: mid-training, annealing."""
    warn_epochs: float = Field(default=4.0, gt=0, le=1e6)
    """A source that a run goes through more often is warned of; repeating more is worth little (arXiv 2305.16264)."""

    @model_validator(mode="after")
    def _sources_fit(self):
        names = [source.name for source in self.sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise Mistake(f"sources: '{twice}' stands there twice; names are to differ")
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted and len(weighted) < len(names):
            without = next(name for name in names if name not in weighted)
            raise Mistake(
                f"sources: '{weighted[0]}' has a weight and '{without}' has none; give all of them one, or none"
            )
        counted = next((source.name for source in self.sources if source.epochs is not None), None)
        if weighted and counted:
            raise Mistake(f"sources: '{counted}' has epochs and a weight; use weights for all sources, or epochs")
        if weighted and not any(source.weight for source in self.sources):
            raise Mistake("sources: all weights are 0, so that nothing would be drawn; give a source a weight")
        return self

    @model_validator(mode="after")
    def _stages_fit(self):
        names = [source.name for source in self.sources]
        for number, stage in enumerate(self.stages):
            if unknown := next((name for name in stage.weights if name not in names), None):
                raise Mistake(f"stages[{number}].weights.{unknown}: no source of the mix; they are {', '.join(names)}")
        return self


class DataConfig(Section):
    """A tokenized dataset and how it is built from sources."""

    path: Place
    """Folder of the dataset; holds `manifest.json` once built."""
    sources: list[SourceConfig] = Field(default_factory=list)
    """Where the documents come from; may stay empty when the dataset is there already."""
    unicode_normalization: Literal["none", "NFC", "NFKC"] = "none"
    """Unicode normal form given to every document before tokenizing."""
    min_characters: int = Field(default=1, ge=0, le=MOST_CHARACTERS)
    """Documents shorter than this are dropped and counted."""
    max_characters: int | None = Field(default=None, ge=1, le=MOST_CHARACTERS)
    """Documents longer than this are dropped and counted; empty means no limit."""
    filters: list[FilterSettings] = Field(default_factory=list)
    """Which documents are worth training on: filters in the order they run, each a name or a section with its name."""
    deduplicate: Deduplicate = DeduplicateConfig()
    """What is left out because it is there already: `none`, `exact`, `near`, or a section that says more."""
    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of documents, chosen by the hash of their text, that is held out."""
    shard_megabytes: float = Field(default=256.0, ge=0.0001, le=MOST_MEGABYTES)
    """Source bytes (10^6) that one task turns into one shard; smaller means more parallel and less lost on a kill."""
    packing: Literal["windows", "best_fit"] = "windows"
    """How text gets into samples: `windows` cuts it every so many tokens; `best_fit` keeps documents whole."""
    num_cpus: int | None = Field(default=None, ge=1, le=4096)
    """CPUs the build may use on this machine; empty means all of them."""
    mix: MixConfig | None = None
    """Shares in which a run draws from the sources; empty draws from all text alike."""
    ray_address: str = "local"
    """`local` starts Ray for the build; otherwise the address of a running Ray cluster, or `auto`."""

    @model_validator(mode="after")
    def _lengths_fit(self):
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise Mistake(f"max_characters: {self.max_characters} is less than min_characters {self.min_characters}")
        return self

    @model_validator(mode="after")
    def _names_differ(self):
        given = [source.name for source in self.sources if source.name is not None]
        if twice := next((name for name in given if given.count(name) > 1), None):
            raise Mistake(f"sources: two are named '{twice}'; names are to differ")
        return self

    @property
    def source_names(self) -> list[str]:
        """Names of the sources: those given, else the last folder or file that the path names, numbered if need be."""
        names = [source.name for source in self.sources]
        for number, source in enumerate(self.sources):
            if names[number] is None:
                wanted = _named_by(source.path)
                free = (f"{wanted}-{count}" if count > 1 else wanted for count in itertools.count(1))
                names[number] = next(name for name in free if name not in names)
        return [name for name in names if name is not None]


def _named_by(path: str) -> str:
    """The last part of a path that is no pattern, without endings and without characters that names may not have."""
    parts = path.rpartition("://")[2].split("/")
    fixed = [part for part in itertools.takewhile(lambda part: not set(part) & set("*?["), parts) if part.strip("./~")]
    stem = fixed[-1].split(".")[0] or fixed[-1] if fixed else ""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:56] or "source"


Share = Annotated[float, Field(gt=0, lt=1)]
SpanLength = Annotated[float, Field(ge=1, le=1000)]
SinglePurpose = Literal[
    "next_token", "prefix_lm", "span_corruption", "ul2", "blank_infilling", "masked_lm", "sentence_pairs"
]


class DenoiserConfig(Section):
    """One of the denoisers of UL2 (arXiv 2205.05131, section 3.1)."""

    mode: Literal["R", "S", "X"]
    """Mode token before the text. R and X hide spans all over the text, S hides its end."""
    noise_density: Share
    """Share of the text that is hidden; for S on average, uniformly from one token to twice the share."""
    mean_span_length: SpanLength | None = None
    """Mean length of hidden spans in tokens; S has none."""
    weight: Weight = 1.0
    """How often it is drawn, relative to the others."""

    @model_validator(mode="after")
    def _spans_fit(self):
        if (self.mode == "S") != (self.mean_span_length is None):
            need = "hides one span at the end and takes none" if self.mode == "S" else "needs it"
            raise Mistake(f"mean_span_length: mode {self.mode} {need}; found {self.mean_span_length}")
        if self.mode == "S" and self.noise_density > 0.5:
            raise Mistake(f"noise_density: mode S hides up to twice the share; {self.noise_density} is above 0.5")
        return self


USED_KEYS = {
    "next_token": (),
    "prefix_lm": (),
    "span_corruption": ("noise_density", "mean_span_length", "mode"),
    "ul2": ("denoisers",),
    "blank_infilling": ("noise_density", "mean_span_length"),
    "masked_lm": ("noise_density", "whole_words"),
    "sentence_pairs": ("noise_density", "whole_words", "max_pair_length"),
    "mixture": ("parts",),
}
"""Keys that an objective has besides its name."""


class _Objective(Section):
    """What all objectives and parts of mixtures have in common; empty keys are left out where they are written."""

    name: str
    noise_density: Share | None = None
    """Share of the tokens that is hidden; empty means 0.15."""
    mean_span_length: SpanLength | None = None
    """Mean length of hidden spans in tokens, for blank_infilling Poisson's lambda; empty means 3."""
    mode: Literal["R", "S", "X"] | None = None
    """span_corruption: mode token put before the text; empty means none."""
    whole_words: bool | None = None
    """masked_lm, sentence_pairs: hide all pieces of a word or none; empty means false."""
    max_pair_length: int | None = Field(default=None, ge=7, le=MOST_PIECES)
    """sentence_pairs: tokens of a pair at most, [CLS] and both [SEP] included; empty means 128."""
    denoisers: list[DenoiserConfig] | None = Field(default=None, min_length=1)
    """ul2: the denoisers it mixes; empty means the seven of the paper, equally likely."""

    @model_validator(mode="after")
    def _keys_are_used(self):
        used = USED_KEYS[self.name]
        for key in type(self).model_fields:
            if key not in ("name", "weight", "sources", *used) and getattr(self, key) is not None:
                keys = f"its keys are {', '.join(used)}" if used else "it has no keys but its name"
                raise Mistake(f"{key}: objective {self.name} does not use it; {keys}")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class ObjectivePart(_Objective):
    """One objective of a mixture."""

    name: SinglePurpose
    """Any objective but a mixture."""
    weight: Weight = 1.0
    """How often a document gets it, relative to the other parts."""
    sources: list[SourceName] | None = Field(default=None, min_length=1)
    """Sources whose documents may get it; empty means all."""


class ObjectiveConfig(_Objective):
    """What the model is asked to predict; docs/shapes.md says which shapes can be asked what."""

    name: Literal[SinglePurpose, "mixture"] = "next_token"
    """`next_token`, `prefix_lm`, `span_corruption` (T5), `ul2`, `blank_infilling` (GLM), `masked_lm` and
    `sentence_pairs` (BERT), or a `mixture` of them by weight."""
    parts: list[ObjectivePart] | None = Field(default=None, min_length=1)
    """mixture: the objectives it draws from, one for each document."""

    @model_validator(mode="after")
    def _mixture_has_parts(self):
        if self.name == "mixture" and not self.parts:
            raise Mistake("parts: a mixture needs them; write a list such as [{name: span_corruption, weight: 2}]")
        return self
