"""Attention of packed documents on this CPU: ours against its own allowed pairs, a dense mask and flex_attention.

    python -m benchmarks.attention [--quick] [--check] [--json FILE]

The pack holds documents of 64 to 2,048 tokens; a prefix fraction says how much of each is prefix. A single causal
document is there to inform: there a dense mask wastes least; and so are two that are seen through a window. All sides
get the same q, k and v in fp32, 6 query heads of 64 on 2 key heads, one thread:
- pairs: what the allowed pairs would take at the rate of torch's own kernel on one long document without any mask,
  where every pair is allowed. Ours at 1x would waste nothing;
- dense mask: torch's scaled_dot_product_attention over the whole pack with a boolean mask, made beforehand. Where it
  forbids half of the pairs or more, ours has to be 1.5x as fast;
- flex_attention: compiled, its block mask made beforehand; forward only, for it has no backward on CPUs.
Outputs and gradients must agree, or there is no result. Seconds are CPU seconds of the process. The sides take turns,
in an order that moves on every round; ours is the median over rounds, and a ratio the median of the ratios of the
rounds, from which the peer's figure is written back.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from benchmarks.table import Row, parser, show
from model.kernels.attention import AttentionPattern, attend

LENGTHS = [384, 64, 1024, 160, 2048, 96, 640, 256]
QUICK_LENGTHS = [160, 64, 512, 96, 256]
FRACTIONS = [0.0, 0.25, 0.5, 1.0]
WINDOW = 128
"""Tokens."""
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 64
GOAL = 1.5
HALF_EMPTY = 0.5
"""Largest share of allowed pairs that has a goal; the single causal document allows half and half a diagonal."""
TOLERANCE = 1e-4

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass
class Pack:
    """One pack of documents and what goes through its attention."""

    name: str
    lengths: list[int]
    prefixes: list[int]
    window: int | None = None

    def __post_init__(self):
        borders = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        whole = AttentionPattern.packed(borders, torch.tensor(self.prefixes, dtype=torch.int32))
        self.pattern = whole.within(self.window)
        generator = torch.Generator().manual_seed(0)
        heads = (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS, NUM_HEADS)
        sizes = [(self.pattern.num_queries, h, HEAD_DIM) for h in heads]
        *self.qkv, self.grad = (torch.randn(size, generator=generator) for size in sizes)
        self.leaves = [x.clone().requires_grad_() for x in self.qkv]

    @property
    def allowed(self) -> float:
        """Share of all pairs of the pack that are allowed."""
        return self.pattern.num_pairs / self.pattern.num_queries**2


def packs_of(lengths: list[int]) -> Iterator[Pack]:
    """The packs to compare."""
    for fraction in FRACTIONS:
        yield Pack(f"prefix {fraction:g}", lengths, [int(n * fraction) for n in lengths])
    yield Pack("one causal document", [max(lengths)], [0])
    for name, prefix in (("causal", 0), ("bidirectional", max(lengths))):
        yield Pack(f"one {name} document, window {WINDOW}", [max(lengths)], [prefix], WINDOW)


def batched(kernel: Callable[..., torch.Tensor]) -> Attend:
    """A kernel on [1, H, T, D] as one on [T, H, D]."""
    return lambda q, k, v: kernel(*(x.transpose(0, 1)[None] for x in (q, k, v)))[0].transpose(0, 1)


def dense(pack: Pack) -> Attend:
    """Kernel of torch with a boolean mask [T, T]."""
    mask = pack.pattern.dense_mask()
    return batched(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True))


COMPILED_FLEX = torch.compile(flex_attention)


def flex(pack: Pack) -> Attend:
    """flex_attention with a block mask."""
    block_mask = block_mask_of(pack)
    return batched(lambda q, k, v: COMPILED_FLEX(q, k, v, block_mask=block_mask, enable_gqa=True))


def block_mask_of(pack: Pack) -> BlockMask:
    """The pattern of a pack as flex_attention takes it."""
    lengths = torch.tensor(pack.lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    prefix_end = (lengths.cumsum(0) - lengths + torch.tensor(pack.prefixes))[document]

    window = pack.window or len(document)

    def sees(_row: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        both_ways = (query < prefix_end[query]) & (key < prefix_end[query])
        near = torch.where(query < prefix_end[query], (query - key).abs() <= window // 2, query - key < window)
        return (document[query] == document[key]) & ((key <= query) | both_ways) & (near if pack.window else True)

    total = len(document)
    return create_block_mask(sees, None, None, total, total, device="cpu")


def forward(pack: Pack, side: Attend) -> float:
    """CPU seconds of the forward pass without a graph."""
    start = time.process_time()
    side(*pack.qkv)
    return time.process_time() - start


def forward_and_backward(pack: Pack, side: Attend) -> float:
    """CPU seconds of both passes."""
    start = time.process_time()
    torch.autograd.grad(side(*pack.leaves), pack.leaves, pack.grad)
    return time.process_time() - start


def outcome(pack: Pack, side: Attend, with_backward: bool) -> list[torch.Tensor]:
    """The output and, where asked for, the gradients of q, k and v."""
    if not with_backward:
        return [side(*pack.qkv)]
    out = side(*pack.leaves)
    return [out.detach(), *torch.autograd.grad(out, pack.leaves, pack.grad)]


def check_values(pack: Pack, ours: Attend, peers: dict[str, Attend]) -> None:
    """Ends the program when a peer does not compute what ours does."""
    expected = outcome(pack, ours, True)
    for name, peer in peers.items():
        found = outcome(pack, peer, name != "flex_attention")
        worst = max(float((x - y).abs().max()) for x, y in zip(found, expected, strict=False))
        if not worst <= TOLERANCE:
            sys.exit(f"{pack.name}: {name} differs from ours by {worst:.2g}, so this is no comparison")


def compare(pack: Pack, unmasked: Pack, rounds: int, sides: dict[str, Attend], run: Callable) -> dict[str, Row]:
    """A row per peer for one kind of pass; `unmasked` gives the rate at which pairs are predicted."""
    everyone = {**{name: (pack, side) for name, side in sides.items()}, "its pairs": (unmasked, sides["its pairs"])}
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    names = list(everyone)
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            spent = run(*everyone[name])
            if turn:  # the first round warms up
                seconds[name].append(spent)
    share = pack.pattern.num_pairs / unmasked.pattern.num_pairs
    seconds["its pairs"] = [share * spent for spent in seconds["its pairs"]]
    ours = seconds.pop("ours")
    ratios = {name: statistics.median(p / o for p, o in zip(peer, ours, strict=True)) for name, peer in seconds.items()}
    what = f"{pack.name}, {pack.allowed:.0%} allowed, {run.__name__.replace('_', ' ')}, ms"
    figure = 1e3 * statistics.median(ours)
    return {name: Row(what, figure, name, figure * ratio, None, True) for name, ratio in ratios.items()}


def measure(lengths: list[int], rounds: int) -> list[Row]:
    """All rows."""
    longest = max(lengths)
    unmasked = Pack("all pairs", [longest], [longest])
    whole = batched(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    rows: list[Row] = []
    for pack in packs_of(lengths):
        ours = functools.partial(attend, pattern=pack.pattern)
        peers = {"dense mask": dense(pack), "flex_attention": flex(pack)}
        check_values(pack, ours, peers)
        goal = GOAL if pack.allowed <= HALF_EMPTY else None
        for run in (forward, forward_and_backward):
            sides: dict[str, Attend] = {"ours": ours, "its pairs": whole, **peers}
            if run is forward_and_backward:
                sides.pop("flex_attention")
            found = compare(pack, unmasked, rounds, sides, run)
            found["dense mask"] = dataclasses.replace(found["dense mask"], goal=goal)
            rows += found.values()
        print(f"{pack.name}: done", file=sys.stderr)
    return rows


def main(args: argparse.Namespace) -> int:
    """Runs the comparison."""
    torch.set_num_threads(1)
    lengths, rounds = (QUICK_LENGTHS, 5) if args.quick else (LENGTHS, 9)
    title = f"Attention of {sum(lengths):,} tokens in documents of {min(lengths)} to {max(lengths):,}, fp32, one thread"
    return show(title, measure(lengths, rounds), args)


if __name__ == "__main__":
    sys.exit(main(parser(__doc__.splitlines()[0]).parse_args()))
