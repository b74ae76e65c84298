"""Muon for hidden matrices, AdamW for all else, on the flat vectors of ZeRO 1 and 2 and on layers that ranks share.

    gradient -> momentum, element by element, where each rank holds it
    -> pieces of a matrix to its owner -> orthogonalised there, whole -> pieces of the update back to who holds them

Muon is K. Jordan's (2024, kellerjordan.github.io/posts/muon), scaled so that learning rate and weight decay are those
of AdamW (arXiv 2502.16982, section 2.2). A matrix is what the network multiplies by: queries, keys and values are
three, gate and up are two, whatever tensors they lie in, and padding is in none.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from training.matrices import Matrix, Piece

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that pulls singular values towards 1, chosen for a steep slope at 0."""
ITERATIONS = 5
EPS = 1e-7
"""Least norm that a matrix is divided by."""
RMS = 0.2
"""Root of the mean square of an update of AdamW, in learning rates."""

_ByRank = dict[int, list[Piece]]
"""Pieces to send to ranks or to get from them."""
Values = Mapping[Piece, torch.Tensor]


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """[R, C] -> U S V^T of its singular vectors with all of S near 1, in the matrix's own precision."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def scale(shape: Sequence[int]) -> float:
    """Learning rates of an orthogonalised matrix, so that its elements are of the size of AdamW's."""
    return RMS * max(shape) ** 0.5


def exchange(values: Values, to: _ByRank, of: _ByRank, like: torch.Tensor) -> Values:
    """Sends each rank the values of pieces and returns those that it sends, one message each way, all at once."""
    if not (to or of):
        return {}
    sent = {rank: torch.cat([values[piece] for piece in pieces]) for rank, pieces in to.items()}
    got = {rank: like.new_empty(sum(piece.length for piece in pieces)) for rank, pieces in of.items()}
    messages = [dist.P2POp(dist.isend, values, rank) for rank, values in sent.items()]
    messages += [dist.P2POp(dist.irecv, into, rank) for rank, into in got.items()]
    for work in dist.batch_isend_irecv(messages):
        work.wait()
    found: dict[Piece, torch.Tensor] = {}
    for rank, pieces in of.items():
        found |= zip(pieces, got[rank].split([piece.length for piece in pieces]), strict=True)
    return found


class Orthogonalizer:
    """Orthogonalises matrices whose pieces lie in flat vectors of several ranks."""

    def __init__(self, matrices: Sequence[Matrix], rank: int, exchange: Callable[..., Values] = exchange):
        """`matrices` are those that this rank holds something of; `exchange` is how ranks send each other pieces."""
        self._exchange, pairs = exchange, [(matrix, piece) for matrix in matrices for piece in matrix.pieces]
        self._own = [matrix for matrix in matrices if matrix.owner == rank]
        self._held = {piece: scale(matrix.shape) for matrix, piece in pairs if piece.rank == rank}
        self._lent = _by_rank((matrix.owner, piece) for matrix, piece in pairs if piece.rank == rank != matrix.owner)
        self._borrowed = _by_rank((piece.rank, piece) for matrix, piece in pairs if piece.rank != rank == matrix.owner)

    def __call__(self, vectors: Mapping[int, torch.Tensor]) -> Iterator[tuple[Piece, torch.Tensor, float]]:
        """Of vectors by number: this rank's pieces of all matrices, orthogonalised, and what to multiply each by."""
        if not self._held:
            return
        held = {piece: vectors[piece.vector].narrow(0, piece.offset, piece.length) for piece in self._held}
        like = next(iter(held.values()))
        there = self._exchange(held, self._lent, self._borrowed, like)
        back: dict[Piece, torch.Tensor] = {}
        for matrix in self._own:
            values = (held[piece] if piece in held else there[piece] for piece in matrix.pieces)
            for piece, result in matrix.split(orthogonalized(matrix.join(values))):
                if piece in held:
                    yield piece, result, self._held[piece]
                else:
                    back[piece] = result
        for piece, result in self._exchange(back, self._borrowed, self._lent, like).items():
            yield piece, result, self._held[piece]


def _by_rank(pairs: Iterable[tuple[int, Piece]]) -> _ByRank:
    ranks: _ByRank = collections.defaultdict(list)
    for rank, piece in pairs:
        ranks[rank].append(piece)
    return dict(sorted(ranks.items()))


class Muon(torch.optim.Optimizer):
    """AdamW's groups first, then one of hidden matrices; `place` must say where these lie before the first step."""

    def __init__(
        self,
        adamw: torch.optim.AdamW,
        hidden: list[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
    ):
        """`dtype` is what matrices are orthogonalised in, and sent in between ranks."""
        super().__init__([{"params": hidden, "lr": lr, "weight_decay": weight_decay}], {"momentum": momentum})
        self._adamw, self._dtype = adamw, dtype
        (muon,) = self.param_groups
        muon["moments"] = ("exp_avg",)
        # One set of groups and of states: who replaces or fills them (ZeRO, a checkpoint) does so for both.
        self.param_groups = [*adamw.param_groups, muon]
        self.state = adamw.state
        self.found_inf: torch.Tensor | None = None
        """A number on the device: while it is not 0, a step changes nothing. As AdamW has it."""
        self._orthogonalize: Orthogonalizer | None = None
        self._first = 0

    def place(self, matrices: Sequence[Matrix], rank: int) -> None:
        """Says where the matrices lie whose parts are in this rank's vectors; `rank` is this one."""
        self._orthogonalize = Orthogonalizer(matrices, rank)
        self._first = sum(len(group["params"]) for group in self.param_groups[:-1])  # before its own vectors

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Changes the parameters of the groups there are (ZeRO gives one at a time); uses gradients of matrices up."""
        assert closure is None, "gradients are there already"
        self._adamw.param_groups = [group for group in self.param_groups if "moments" not in group]
        if self._adamw.param_groups:
            self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
            self._adamw.step()
        for group in self.param_groups:
            if "moments" in group:
                self._update(group)

    def _update(self, group: dict) -> None:
        assert self._orthogonalize is not None, "place() comes before the first step"
        weights, directions, share = {}, {}, 1 - group["momentum"]
        for number, weight in enumerate(group["params"], self._first):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            state = self.state[weight]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            if self.found_inf is not None:  # what is no number would pass through a share of 0
                torch.where(self.found_inf == 0, gradient, state["exp_avg"], out=gradient)
            state["exp_avg"].lerp_(gradient, share)
            directions[number] = gradient.lerp_(state["exp_avg"], group["momentum"]).view(-1).to(self._dtype)
            weights[number] = weight.view(-1)
        kept = 1 - group["lr"] * group["weight_decay"]
        for piece, values, factor in self._orthogonalize(directions):
            weight = weights[piece.vector].narrow(0, piece.offset, piece.length)
            changed = (weight * kept).add_(values, alpha=-group["lr"] * factor)
            weight.copy_(changed if self.found_inf is None else torch.where(self.found_inf == 0, changed, weight))
