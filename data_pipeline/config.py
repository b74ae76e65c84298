"""What data is made of: the `tokenizer:`, `data:` and `objective:` sections of a config file."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from common.mistakes import Mistake
from common.section import Place, Section

MOST_PIECES, MOST_CHARACTERS = 2**24, 2**40
"""Pieces of a vocabulary and characters of a document: far more than anybody has."""
MOST_MEGABYTES = 1e9
"""A petabyte."""


class SourceConfig(Section):
    """One place documents come from."""

    path: Place
    """Path, glob (`**` reaches into subfolders) or fsspec URL such as `s3://bucket/part-*.jsonl.zst`."""
    format: Literal["auto", "jsonl", "parquet", "csv", "tsv", "text"] = "auto"
    """How to read the files; `auto` goes by their endings and refuses those it does not know; .gz and .zst are read."""
    text_key: str = "text"
    """Field (jsonl) or column (parquet, csv, tsv) that holds the document's text; `meta.text` is text within meta."""
    document: Literal["file", "line"] = "file"
    """For text files: the whole file is one document, or every line is."""


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
    deduplicate: Literal["none", "exact"] = "exact"
    """`exact` keeps the first of identical documents, wherever in the sources they are."""
    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of documents, chosen by the hash of their text, that is held out."""
    shard_megabytes: float = Field(default=256.0, ge=0.0001, le=MOST_MEGABYTES)
    """Source bytes (10^6) that one task turns into one shard; smaller means more parallel and less lost on a kill."""
    num_cpus: int | None = Field(default=None, ge=1, le=4096)
    """CPUs the build may use on this machine; empty means all of them."""
    ray_address: str = "local"
    """`local` starts Ray for the build; otherwise the address of a running Ray cluster, or `auto`."""

    @model_validator(mode="after")
    def _lengths_fit(self):
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise Mistake(f"max_characters: {self.max_characters} is less than min_characters {self.min_characters}")
        return self


Share = Annotated[float, Field(gt=0, lt=1)]
SpanLength = Annotated[float, Field(ge=1, le=1000)]
Weight = Annotated[float, Field(gt=0, le=1e12)]
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
            if key not in ("name", "weight", *used) and getattr(self, key) is not None:
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
