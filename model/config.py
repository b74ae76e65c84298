"""What a model is made of. The file that says so has a `model:` section with these keys."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from common.mistakes import Mistake
from common.section import Section

MOST_TOKENS = 2**24
"""Tokens of a document or a sample: ten times the longest that anybody has trained on."""
WIDEST = 2**20
"""Most columns of a matrix; those of published models have up to 73,728."""
DEEPEST = 2**12
"""Most layers; published models have up to 126."""

LayerKind = Literal["sliding_attention", "full_attention"]
"""Kinds of layers, as Hugging Face calls them."""
SLIDING: LayerKind = "sliding_attention"
FULL: LayerKind = "full_attention"

MULTI_TOKEN_WEIGHT = 0.3
"""Of the mean loss of further depths, as DeepSeek-V3 was trained for its first 10 trillion tokens (section 4.2)."""

GATES = {"swiglu": "silu", "geglu": "gelu_tanh", "geglu_exact": "gelu"}
"""Activations that multiply two projections, gate and up, by the function that the gate goes through."""


def _spelled(value: Any) -> Any:
    """Configs of old say true or false."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


def _flag_or_word(value: Any) -> Any:
    """A flag in any of its spellings, or what it is."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        return value


class RopeScaling(Section):
    """How rotary frequencies are stretched for texts longer than those of the first training."""

    kind: Literal["linear", "llama3"]
    """`linear` divides every frequency by `factor` (arXiv 2306.15595); `llama3` only the slow ones, as Llama 3.1."""
    factor: float = Field(ge=1, le=1e6)
    """How many times longer."""
    low_freq_factor: float = Field(default=1.0, gt=0, le=1e6)
    """llama3: waves longer than original_max_positions / this are divided by `factor`."""
    high_freq_factor: float = Field(default=4.0, gt=0, le=1e6)
    """llama3: waves shorter than original_max_positions / this stay as they are; in between is interpolated."""
    original_max_positions: int = Field(default=8192, ge=1, le=MOST_TOKENS)
    """llama3: length of the first training, in tokens."""

    @model_validator(mode="after")
    def _bands_fit(self):
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise Mistake(
                f"high_freq_factor: {self.high_freq_factor} is not above low_freq_factor {self.low_freq_factor}"
            )
        return self


class ModelConfig(Section):
    """Shape and size of the network; everything else about it follows from these keys."""

    shape: Literal["causal", "prefix", "encoder", "encdec"] = "causal"
    """Attention pattern of the network: `causal` and `prefix` are decoders, `encdec` has an encoder beside its own."""
    vocab_size: int | None = Field(default=None, ge=2, le=MOST_TOKENS)
    """Rows of the embedding; empty means the tokenizer's own size."""
    num_layers: int = Field(ge=1, le=DEEPEST)
    """Number of transformer blocks; in an encoder-decoder, of the decoder."""
    num_encoder_layers: int | None = Field(default=None, ge=1, le=DEEPEST)
    """Number of blocks of the encoder of an encoder-decoder; empty means `num_layers`."""
    d_model: int = Field(ge=1, le=WIDEST)
    """Width of the residual stream."""
    num_heads: int = Field(ge=1, le=WIDEST)
    """Number of query heads."""
    num_kv_heads: int | None = Field(default=None, ge=1, le=WIDEST)
    """Number of key/value heads (grouped-query attention; 1 is multi-query); empty means `num_heads`."""
    head_dim: int | None = Field(default=None, ge=1, le=WIDEST)
    """Width of one head; empty means `d_model / num_heads`."""
    d_ff: int = Field(ge=1, le=WIDEST)
    """Inner width of the feed-forward layer."""
    activation: Literal["swiglu", "geglu", "geglu_exact", "gelu", "gelu_tanh", "relu"] = "swiglu"
    """Of the feed-forward layer; swiglu, geglu (with tanh, as T5 v1.1) and geglu_exact (without, as ModernBERT) are
    gated by a third matrix."""
    norm: Literal["rmsnorm", "rmsnorm_1p", "layernorm"] = "rmsnorm"
    """Kind of all norms; those of queries and keys are RMSNorm always. The weights of `rmsnorm_1p`, in these too, are
    kept less 1, as Gemma's."""
    norm_placement: Literal["pre", "post", "sandwich", "output"] = "pre"
    """Where a block has its norms around each of its parts f: `pre` x + f(norm(x)); `post` norm(x + f(x)), and none at
    the end of a stack (arXiv 1706.03762; BERT, BART); `sandwich` x + norm(f(norm(x))) (Gemma 2); `output`
    x + norm(f(x)) (OLMo 2)."""
    norm_eps: float = Field(default=1e-5, gt=0, le=1)
    """Added to the mean square or the variance inside norms."""
    qk_norm: Annotated[Literal[False, True, "all_heads"], BeforeValidator(_flag_or_word)] = False
    """RMSNorm on each head of queries and keys, before positions are applied (arXiv 2302.05442); `all_heads` takes the
    mean square over all of them together (OLMo 2)."""
    attention_scale: float | None = Field(default=None, gt=0, le=1e6)
    """Products of queries and keys are multiplied by it; empty means head_dim**-0.5 (144**-0.5 in Gemma 2 of 27B)."""
    attention_softcap: float | None = Field(default=None, gt=0, le=1e6)
    """Then they become softcap x tanh(score / softcap), in cross-attention too and before a bias by distance is added
    (50 in Gemma 2); empty leaves them."""
    attention_gate: bool = False
    """What each attention gives is multiplied by a sigmoid of one more map of its input (arXiv 2505.06708)."""
    embedding_norm: bool = False
    """A norm right after the embedding (BLOOM, BERT, BART)."""
    first_attention_norm: bool = True
    """Whether the self-attention of a stack's first block has a norm before it; false where embedding_norm has just
    normed what it reads (ModernBERT)."""
    bias: bool = False
    """Biases on linear maps (but the output projection, see `head_bias`) and on LayerNorm."""
    qkv_bias: bool | None = None
    """Biases on the maps to queries, keys and values; empty means `bias`."""
    attention_output_bias: bool | None = None
    """A bias on the map behind each attention, cross-attention too (GPT-J has none); empty means `bias`."""
    parallel_block: bool = False
    """Attention and feed-forward read the same states and are added together (GPT-J, PaLM)."""
    parallel_norms: Literal[1, 2] = 1
    """parallel_block: norms of these states, one for both (GPT-J, PaLM) or one for each (GPT-NeoX)."""
    positions: Literal["rope", "t5_bias", "learned", "alibi", "none"] = "rope"
    """How the model knows where a token stands in its document."""
    rope_theta: float = Field(default=10000.0, gt=0, le=1e12)
    """Base of the rotary position frequencies."""
    rope_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of each head that is rotated, its first dims (GPT-J, ChatGLM)."""
    rope_scaling: RopeScaling | None = None
    """How frequencies are stretched; empty means they are not."""
    sliding_rope_theta: float | None = Field(default=None, gt=0, le=1e12)
    """Base in layers that slide, which are not stretched then (Gemma 3, ModernBERT); empty: they are like others."""
    no_rope_layer_interval: int | None = Field(default=None, ge=2, le=DEEPEST)
    """Every second, third ... layer of a stack has no positions at all (arXiv 2501.18795); empty gives them to all."""
    max_positions: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Rows of the table of learned positions: the longest document there can be."""
    position_offset: int = Field(default=0, ge=0, le=WIDEST)
    """Rows of that table before the one of the first token, which are never read (2 in OPT, BART and RoBERTa)."""
    segment_embeddings: int | None = Field(default=None, ge=1, le=WIDEST)
    """Rows of a table of segments, the first of which is added to every token (2 in BERT, 1 in RoBERTa); empty: no
    table."""
    embedding_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Token embeddings are multiplied by it, before positions are added (sqrt(d_model) in Gemma); outputs are not."""
    t5_num_buckets: int = Field(default=32, ge=4, le=WIDEST)
    """Distances that t5_bias tells apart."""
    t5_max_distance: int = Field(default=128, ge=2, le=MOST_TOKENS)
    """Distance in tokens from which on t5_bias tells none apart."""
    t5_bias_per_layer: bool = False
    """Every layer has a table of such biases of its own (UMT5), and not each stack one for all of its layers."""
    sliding_window: int | None = Field(default=None, ge=2, le=MOST_TOKENS)
    """Tokens that a token sees in layers of sliding attention: itself and those right before it, half of them on either
    side where it sees both ways (arXiv 2004.05150); empty lets it see all in every layer."""
    layer_types: list[LayerKind] | None = Field(default=None, min_length=1)
    """Kinds of a stack's layers from its first on, repeated up to its last; empty, with a window, makes all slide."""
    multi_token_depths: int = Field(default=0, ge=0, le=64)
    """How many tokens beyond the next one a decoder predicts in training, each by a block more on top of the one before
    (DeepSeek-V3, arXiv 2412.19437, section 2.2)."""
    tie_embeddings: bool = False
    """Use the input embedding as the output projection too."""
    head_transform: bool = False
    """Before the output projection a linear map, the activation without its gate, and a norm (BERT, ModernBERT)."""
    head_bias: bool = False
    """A bias of the output projection (BERT, GPT-J, Phi)."""
    logit_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Logits are multiplied by it (d_model**-0.5 in PaLM, 0.0625 in Cohere)."""
    logit_softcap: float | None = Field(default=None, gt=0, le=1e6)
    """Logits become softcap x tanh(logits / softcap), after the scale (30 in Gemma 2); empty leaves them."""
    init_std: float = Field(default=0.02, gt=0, le=1e3)
    """Standard deviation of initial weights; residual outputs get it divided by sqrt(2 num_layers)."""
    attention_backend: Literal["auto", "flash", "varlen", "sdpa", "reference"] = "auto"
    """Attention kernel; `varlen` is torch's own build of flash-attn; `auto` is what runs of flash, varlen, sdpa."""
    activation_checkpointing: Annotated[Literal["none", "full", "attention"], BeforeValidator(_spelled)] = "none"
    """What the backward pass computes again instead of keeping it: whole blocks (`full`; true means the same), about a
    third more compute, or their attention alone (`attention`), which keeps the feed-forward layers' share."""
    activation_checkpointing_interval: int = Field(default=1, ge=1, le=DEEPEST)
    """full: every block, or every second, third ... one of a stack, from its first."""
    compile: bool = False
    """Compile each block with torch.compile: a slow first step, faster ones after it."""

    @model_validator(mode="after")
    def _heads_fit(self):
        if self.head_dim is None and self.d_model % self.num_heads:
            raise Mistake(
                f"num_heads: {self.num_heads} does not divide d_model {self.d_model}; "
                "change one of them or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise Mistake(
                f"num_kv_heads: {self.kv_heads} does not divide num_heads {self.num_heads}; use a divisor of num_heads"
            )
        if self.positions == "rope" and (self.rotary_dim < 2 or self.rotary_dim % 2):
            raise Mistake(
                f"head_dim: {self.head_size} with rope_fraction {self.rope_fraction:g} makes {self.rotary_dim} rotary "
                "dims; they must be an even number, 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _scale_is_said_once(self):
        if self.attention_scale == self.head_size**-0.5:
            self.__dict__["attention_scale"] = None  # frozen once read; equal models have equal keys
        return self

    @model_validator(mode="after")
    def _parts_fit(self):
        if self.num_encoder_layers is not None and self.shape != "encdec":
            raise Mistake(
                f"num_encoder_layers: only shape encdec has an encoder beside it, this is {self.shape}; leave it empty"
            )
        if self.activation_checkpointing_interval > 1 and self.activation_checkpointing != "full":
            raise Mistake(
                f"activation_checkpointing_interval: only activation_checkpointing full has one, this is "
                f"{self.activation_checkpointing}; leave it at 1"
            )
        if self.parallel_block and self.shape == "encdec":
            raise Mistake("parallel_block: a block with cross-attention has no parallel form; use it without encdec")
        if self.parallel_block and self.norm_placement != "pre":
            raise Mistake(
                f"norm_placement: {self.norm_placement} is for parts that follow each other, parallel_block has them "
                "side by side; use pre or parallel_block false"
            )
        if self.parallel_norms > 1 and not self.parallel_block:
            raise Mistake("parallel_norms: only parallel_block has a choice of them; set it too or leave this at 1")
        if not self.first_attention_norm and (not self.embedding_norm or self.parallel_block):
            raise Mistake(
                "first_attention_norm: false is for blocks in which embedding_norm stands for it and parts follow each "
                f"other; embedding_norm is {self.embedding_norm}, parallel_block {self.parallel_block}"
            )
        if not self.first_attention_norm and self.norm_placement != "pre":
            raise Mistake(
                f"first_attention_norm: only norm_placement pre can do without it, this is {self.norm_placement}; "
                "leave it true"
            )
        if (self.positions == "learned") != (self.max_positions is not None):
            raise Mistake(
                f"max_positions: learned positions need it and no others do; positions is {self.positions}, "
                f"max_positions {self.max_positions}"
            )
        if self.positions != "learned" and self.position_offset:
            raise Mistake(f"position_offset: only learned positions have one, this is {self.positions}; leave it at 0")
        if self.positions != "rope" and (self.rope_scaling is not None or self.rope_fraction != 1):
            raise Mistake(f"rope_scaling, rope_fraction: only positions rope has them, this is {self.positions}")
        if self.positions != "rope" and self.no_rope_layer_interval is not None:
            raise Mistake(
                f"no_rope_layer_interval: only positions rope has it, this is {self.positions}; leave it empty"
            )
        if self.positions == "t5_bias" and self.t5_max_distance <= self.t5_num_buckets // 2:
            raise Mistake(
                f"t5_max_distance: {self.t5_max_distance} leaves no far buckets; use more than half of t5_num_buckets "
                f"{self.t5_num_buckets}"
            )
        if self.positions != "t5_bias" and self.t5_bias_per_layer:
            raise Mistake(
                f"t5_bias_per_layer: only positions t5_bias has tables, this is {self.positions}; leave it false"
            )
        if self.attention_softcap is not None and self.attention_backend == "varlen":
            raise Mistake(
                f"attention_backend: varlen takes no soft cap and attention_softcap is {self.attention_softcap:g}; use "
                "flash, sdpa or auto"
            )
        if self.positions == "t5_bias" and self.attention_backend in ("flash", "varlen"):
            raise Mistake(
                f"attention_backend: {self.attention_backend} takes no bias per pair, which positions t5_bias needs; "
                "use sdpa"
            )
        return self

    @model_validator(mode="after")
    def _layers_fit(self):
        kinds, deepest = self.layer_types or [], max(self.num_layers, self.encoder_layers)
        if kinds and self.sliding_window is None:
            raise Mistake(
                "layer_types: it says which layers have a sliding_window, and none is given; set both or neither"
            )
        if self.sliding_rope_theta is not None and (self.sliding_window is None or self.positions != "rope"):
            raise Mistake(
                f"sliding_rope_theta: it is of rope in layers that slide; positions is {self.positions}, window "
                f"{self.sliding_window}; set those or leave it empty"
            )
        if kinds and SLIDING not in kinds:
            raise Mistake(
                f"sliding_window: {self.sliding_window}, and layer_types has no {SLIDING}; name one or drop both"
            )
        if len(kinds) > deepest:
            raise Mistake(f"layer_types: it names {len(kinds)} layers and there are {deepest}; leave out the last ones")
        if self.multi_token_depths and self.shape == "encoder":
            raise Mistake(
                f"multi_token_depths: {self.multi_token_depths}, but shape encoder fills in places: no next token; "
                "use 0 or a decoder"
            )
        if (self.no_rope_layer_interval or 0) > deepest:
            raise Mistake(
                f"no_rope_layer_interval: {self.no_rope_layer_interval} is more than the {deepest} layers there are; "
                "lower it or leave it empty"
            )
        return self

    def run_plainly(self, **changes: Any) -> "ModelConfig":
        """The same network, nothing of it recomputed or compiled, with further changes to how it runs."""
        how = {"activation_checkpointing": "none", "activation_checkpointing_interval": 1, "compile": False}
        return self.model_copy(update=how | changes)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, G."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Width of one head, D."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Dims of a head that are rotated."""
        return int(self.head_size * self.rope_fraction)

    @property
    def encoder_layers(self) -> int:
        """Blocks of the encoder beside a decoder; 0 but in an encoder-decoder."""
        return (self.num_encoder_layers or self.num_layers) if self.shape == "encdec" else 0

    def slides(self, index: int) -> bool:
        """Whether layer `index` of a stack, from 0, sees no more than the window."""
        if self.sliding_window is None:
            return False
        return self.layer_types is None or self.layer_types[index % len(self.layer_types)] == SLIDING

    def rotates(self, index: int) -> bool:
        """Whether layer `index` of a stack, from 0, has rotary positions."""
        interval = self.no_rope_layer_interval
        return self.positions == "rope" and (interval is None or (index + 1) % interval != 0)

    def num_sliding(self, num_layers: int) -> int:
        """Layers of a stack of so many that see no more than the window."""
        return sum(map(self.slides, range(num_layers)))

    def recomputes(self, index: int) -> bool:
        """Whether layer `index` of a stack, from 0, is computed again as a whole in the backward pass."""
        return self.activation_checkpointing == "full" and index % self.activation_checkpointing_interval == 0

    @property
    def has_final_norm(self) -> bool:
        """Whether a stack ends with a norm of its own."""
        return self.norm_placement != "post"

    def num_norms(self, parts: int) -> int:
        """Norms of a block of so many parts: attention, cross-attention where there is such, feed-forward.

        The first block of a stack has one less without `first_attention_norm`.
        """
        if self.parallel_block:
            return self.parallel_norms
        return parts * (2 if self.norm_placement == "sandwich" else 1)

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer has a third matrix."""
        return self.activation in GATES

    @property
    def plain_activation(self) -> str:
        """The activation, or the function of a gated one's gate."""
        return GATES.get(self.activation, self.activation)

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_attention_output_bias(self) -> bool:
        """Whether the map behind an attention has a bias."""
        return self.bias if self.attention_output_bias is None else self.attention_output_bias
