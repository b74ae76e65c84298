"""Bytes that a forward pass leaves for the backward pass, tensor by tensor, as our blocks save them.

    per block and token, in elements (M width, H D heads, G D keys and values, F inner width):
    norm: input M, output M | attention: q H D, k and v 2 G D, what it gives H D | norm: M, M | feed-forward: up to 3 F
    with a gate: its sigmoids H D, what it lets through H D
    and in fp32 a norm's scale of each row, and the logarithm of each head's partition function

Rows are a rank's: T / context. Heads and F are those of its tensor rank; what lies between layers is cut by rows with
sequence parallelism. A recomputed block leaves its input alone; one at a time is whole while it is computed again.
What a device's kernels keep beyond that is in kernels.py.
"""

from typing import NamedTuple

from model.config import ModelConfig
from model.network.loss import SLAB_ELEMENTS
from training.config import ParallelConfig, TrainingConfig
from training.plan.kernels import FP32, kernels

BF16, INT64 = 2, 8


def width_of(training: TrainingConfig) -> int:
    """Bytes of a number that the model computes with."""
    return BF16 if training.precision == "bf16" else FP32


class Rows(NamedTuple):
    """Tokens of one micro-batch."""

    tokens: int
    """Of the stack that has the head, T."""
    encoder_tokens: int = 0
    """Of the encoder beside it, S."""
    document: int = 0
    """Of a document; biases of scores are matrices over all pairs of one."""
    targets: float = 1.0
    """Share of the tokens that the loss is taken on."""


class Activations(NamedTuple):
    """Bytes of one rank."""

    blocks: int
    """Left by all blocks of all stacks."""
    ends: int
    """Left by embeddings, positions, last norms and the loss, whose gradients are made on the way forward."""
    recomputed: int
    """Of what is computed again at once, while it is; 0 where nothing is."""
    logits: int
    """Of one chunk of logits while its loss is computed, and of the states that it is computed from."""
    matrix: int
    """Of the output matrix's gradient, which is among the ends, once for each depth of prediction."""
    turned: int
    """Of it once more, when it is turned into what the model computes with."""
    on_the_way: int
    """Of gradients that are alive at once in the last block's backward pass, less what was given back before."""


class _Stack(NamedTuple):
    num_layers: int
    tokens: int
    read: int
    """Tokens that its cross-attention reads; 0 without."""
    is_square: bool
    """Whether all of a document see each other."""


def activations(
    model: ModelConfig, vocab_size: int, parallel: ParallelConfig, rows: Rows, width: int, on_gpu: bool = True
) -> Activations:
    """What a rank keeps, where a number that the model computes with has `width` bytes."""
    size = _Sizes(model, parallel, rows.document, width, on_gpu)
    tokens, read = rows.tokens // parallel.context, rows.encoder_tokens // parallel.context
    depths = model.multi_token_depths
    stacks = [_Stack(model.num_layers + depths, tokens, read, model.shape == "encoder")]
    if model.shape == "encdec":
        stacks.append(_Stack(model.encoder_layers, read, 0, True))
    blocks = sum(size.of_stack(stack) for stack in stacks)
    recomputed = max(size.recomputed(stack) for stack in stacks)
    ends = sum(size.ends(stack.tokens) for stack in stacks) + size.between(read)  # what cross-attention reads
    columns = vocab_size // parallel.tensor
    states, matrix, logits, turned = size.loss(tokens, columns, rows.targets)
    ends += (1 + depths) * (states + matrix) + size.head_transform(tokens) + (size.depths(tokens) if depths else 0)
    on_the_way = max(size.on_the_way(stack.tokens) for stack in stacks)
    return Activations(blocks, ends, recomputed, logits, matrix, turned, on_the_way)


class _Loss(NamedTuple):
    states: int
    """Gradients of the states."""
    matrix: int
    """The gradient of the output matrix: in fp32 where several chunks of logits add to it."""
    logits: int
    """A chunk of them, in fp32 and, where the model computes with less, once more; the last states, and those of
    targets where others are left out; the product that is added to the matrix's gradient, or a slab of it."""
    turned: int
    """The matrix's gradient, or a slab of it, once more when the backward pass begins."""


class _Sizes:
    """Bytes of the parts of a stack."""

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, document: int, width: int, on_gpu: bool):
        self.model, self.width, self.document = model, width, document
        self.kernels = kernels(model, width, document, on_gpu)
        self.heads, self.groups = model.num_heads // parallel.tensor, model.kv_heads // parallel.tensor
        self.inner = model.d_ff // parallel.tensor
        self.row_parts = parallel.tensor if parallel.cuts_rows else 1
        self.shares_rows, self.tensor = parallel.context > 1, parallel.tensor

    def between(self, tokens: int) -> int:
        """One tensor [T, M] between layers."""
        return tokens // self.row_parts * self.model.d_model * self.width

    def norm(self, tokens: int) -> int:
        """A norm's input, and its scales, and offsets where it has such."""
        scales = 2 if self.model.norm == "layernorm" else 1
        rows = tokens // self.row_parts
        return rows * (self.model.d_model * self.kernels.normed + scales * FP32)

    def attention(self, tokens: int, is_square: bool, read: int = 0) -> int:
        """What attention leaves of its own; cross-attention where it reads other tokens."""
        model, keys, kept = self.model, read or tokens, self.kernels
        # what attention gives is kept once more where ranks share rows: by heads for itself, by rows for the next layer
        given = kept.attended + self.shares_rows
        queries = kept.squares if is_square else kept.queries
        elements = (queries + given) * tokens * self.heads + 2 * queries * keys * self.groups
        if model.attention_gate:  # its sigmoids, and what it lets through
            elements += 2 * tokens * self.heads
        scales = tokens * self.heads
        copies = 0
        if model.qk_norm and not read:
            normed = tokens * (self.heads + self.groups)
            elements += normed
            scales += 2 * tokens if model.qk_norm == "all_heads" else normed
            if model.norm == "rmsnorm_1p" and self.width < FP32:
                copies = normed * model.head_size * FP32
        elif model.compile and model.positions == "rope" and not read:
            # compiled, values are a view of the product that they came from, queries and keys of which are new
            elements += tokens * (self.heads + self.groups)
        biased = kept.bias_rows * self.biased_keys(tokens) * self.heads * kept.bias_width if not read else 0
        return elements * model.head_size * self.width + biased + scales * FP32 + copies

    def feed_forward(self, tokens: int) -> int:
        """Gate and up and their product; before and after another activation, but relu is undone by its output."""
        parts = 3 if self.model.is_gated else 1 if self.model.activation == "relu" else 2
        return tokens * parts * self.inner * self.width

    def block(self, stack: _Stack) -> int:
        """All that a block leaves."""
        _, tokens, read, _ = stack
        parts, model = 3 if read else 2, self.model
        norms = model.num_norms(parts) * self.norm(tokens)
        if model.parallel_norms > 1 and self.kernels.normed == self.width:
            norms -= self.between(tokens)  # both keep the same states, and no copies of them
        inputs = (model.parallel_norms if model.parallel_block else parts) * self.between(tokens)
        return norms + inputs + self.feed_forward(tokens) + self.attentions(stack)

    def of_stack(self, stack: _Stack) -> int:
        """All blocks of a stack."""
        num_layers, tokens = stack.num_layers, stack.tokens
        whole = self.block(stack)
        how = self.model.activation_checkpointing
        if how == "full":  # the first block too, so what it has not is nowhere kept
            skipped = -(-num_layers // self.model.activation_checkpointing_interval)
            return skipped * self.between(tokens) + (num_layers - skipped) * whole
        lacking = 0 if self.model.first_attention_norm else self.norm(tokens)
        return num_layers * (whole - (self.attentions(stack) if how == "attention" else 0)) - lacking

    def recomputed(self, stack: _Stack) -> int:
        """What is computed again at once."""
        how = {"full": self.block(stack), "attention": self.attentions(stack)}
        return how.get(self.model.activation_checkpointing, 0)

    def biased_keys(self, tokens: int) -> int:
        """Keys that the rows of a bias are kept for; a matrix of blocks of queries serves all documents."""
        if self.kernels.bias_rows < self.document:
            return self.document + self.kernels.bias_rows
        return tokens

    def attentions(self, stack: _Stack) -> int:
        """What the attentions of a block leave."""
        own = self.attention(stack.tokens, stack.is_square)
        return own + (self.attention(stack.tokens, True, stack.read) if stack.read else 0)

    def depths(self, tokens: int) -> int:
        """What further depths leave outside of their blocks: inputs of three norms and of a matrix, and rotations."""
        model = self.model
        again = sum(model.recomputes(model.num_layers + depth) for depth in range(model.multi_token_depths))
        merged = tokens * 2 * model.d_model * self.width // self.tensor
        kept = again * self.between(tokens)
        norms = (2 + model.has_final_norm) * self.norm(tokens)
        kept += (model.multi_token_depths - again) * (norms + merged)
        return kept + self.rotations(tokens)

    def head_transform(self, tokens: int) -> int:
        """What the map before the output projection leaves: its input, that of the activation, that of the norm."""
        model = self.model
        if not model.head_transform:
            return 0
        times = 1 + model.multi_token_depths
        # the next depth's norm keeps the same states, where neither makes a copy of its own
        inputs = 1 if self.tensor == 1 and self.kernels.normed == self.width else times
        before = 0 if model.plain_activation == "relu" else self.between(tokens)
        return inputs * tokens * model.d_model * self.width // self.tensor + times * (before + self.norm(tokens))

    def rotations(self, tokens: int) -> int:
        """Cosines and sines of every token, and those of layers that slide where they have their own."""
        tables = 0 if self.model.positions != "rope" else 1 if self.model.sliding_rope_theta is None else 2
        return tables * tokens * self.model.rotary_dim * FP32

    def ends(self, tokens: int) -> int:
        """What a stack leaves outside of its blocks: ids, rotations, and the inputs of its other norms."""
        model = self.model
        ids = tokens * INT64 * (2 if model.positions == "learned" else 1)
        ids += tokens * INT64 * model.multi_token_depths
        return (model.has_final_norm + model.embedding_norm) * self.norm(tokens) + self.rotations(tokens) + ids

    def loss(self, tokens: int, columns: int, targets: float) -> "_Loss":
        """What the loss leaves and what it needs meanwhile."""
        model, kept, width = self.model, self.kernels, self.width
        chosen = targets < kept.enough_targets
        rows = int(tokens * targets) if chosen else tokens
        states, matrix = rows * model.d_model, columns * model.d_model
        chunk, mixed = min(rows, max(kept.chunk // columns, 256)), width < FP32
        slopes = FP32 * (model.logit_softcap is not None)
        logits = chunk * columns * (FP32 + slopes + width * mixed) + (tokens * model.d_model + chosen * states) * width
        slab = min(SLAB_ELEMENTS, matrix)
        if not mixed:
            return _Loss(states * width, matrix * width, logits + chunk * model.d_model * width, 0)
        if chunk == rows:
            return _Loss(states * width, matrix * width, logits + matrix * kept.added, slab * FP32)
        return _Loss(states * width, matrix * FP32, logits + slab * (width + kept.added), matrix * width)

    def on_the_way(self, tokens: int) -> int:
        """Gradients inside the last feed-forward layer and of its second matrix, less the last states, which are gone.

        Of all of a backward pass this is the most that is alive beside what is left.
        """
        parts, model = 3 if self.model.is_gated else 2, self.model
        return (tokens * parts + model.d_model) * self.inner * self.width - self.between(tokens)
