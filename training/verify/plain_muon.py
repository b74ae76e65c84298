"""Muon as its papers have it, on whole tensors: the plain loop's optimizer for runs that use it.

It shares no line with `training.muon`: what it takes from the network is which tensors are made of which matrices.
"""

from collections.abc import Sequence

import torch

from model.network.tensor_ranks import Division


class Direction:
    """Where a step goes; the ways to get it wrong inherit from it."""

    def of_tensor(self, momentum: torch.Tensor, division: Division) -> torch.Tensor:
        """What is subtracted from a tensor at learning rate 1, each of its matrices by itself."""
        sections = momentum.split(list(division.sections), division.dim)
        return torch.cat([self.of_matrix(each) for each in sections], division.dim)

    def of_matrix(self, momentum: torch.Tensor) -> torch.Tensor:
        """The same of one matrix: the direction of arXiv 2502.16982, equation 4."""
        return 0.2 * max(momentum.shape) ** 0.5 * self.orthogonal(momentum).to(torch.float32)

    def orthogonal(self, matrix: torch.Tensor) -> torch.Tensor:
        """Five Newton-Schulz iterations of X -> a X + b (X X^T) X + c (X X^T)^2 X, on the side that is shorter."""
        is_tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.mT if is_tall else matrix
        x = x / torch.linalg.matrix_norm(x).clamp_min(1e-7)
        for _ in range(5):
            square = x @ x.mT  # in bf16 it matters that a product is added before it is rounded
            polynomial = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
            x = torch.addmm(x, polynomial, x, beta=3.4445)
        return x.mT if is_tall else x


class PlainMuon:
    """AdamW for some parameters, and Muon for others, each with the matrices that it is made of."""

    def __init__(
        self,
        adamw: torch.optim.AdamW,
        hidden: Sequence[tuple[torch.nn.Parameter, Division]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
        direction: Direction,
    ):
        self.state, self._adamw, self._hidden = adamw.state, adamw, hidden
        self._lr, self._momentum, self._decay = lr, momentum, weight_decay
        self._dtype, self._direction = dtype, direction

    @torch.no_grad()
    def step(self) -> None:
        """One update of all of them."""
        self._adamw.step()
        for weight, division in self._hidden:
            assert weight.grad is not None
            state = self.state[weight]
            before = state.get("exp_avg", torch.zeros_like(weight))
            state["exp_avg"] = self._momentum * before + (1 - self._momentum) * weight.grad
            ahead = self._momentum * state["exp_avg"] + (1 - self._momentum) * weight.grad  # Nesterov's
            update = self._direction.of_tensor(ahead.to(self._dtype), division)
            weight.copy_(weight - self._lr * (update + self._decay * weight))
