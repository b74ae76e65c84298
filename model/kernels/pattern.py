"""Who attends to whom in a pack of documents, as a value.

A document of n tokens with prefix length p lets its first p tokens see each other and every later
token see all tokens up to itself: p = 0 is causal, p = n bidirectional. Nobody sees another document.

Queries and keys may come from two packs, whose documents are paired. Then the queries of a document stand at the end
of its keys: query i of m stands at place n - m + i of n keys, and sees the keys up to there and all of the prefix.
Cross-attention is that with all keys in the prefix.

A window of w tokens (arXiv 2004.05150, section 3.1) takes from that what is far away: tokens of a prefix see those of
it up to w // 2 places before and after them, every later token itself and the w - 1 before it, in the prefix or not. So
an encoder has the windows of ModernBERT, a causal model those of Mistral. Two packs have none.
"""

import dataclasses
import functools
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch


class Document(NamedTuple):
    """The allowed pairs of one document: a square and what is causal, one below the other."""

    num_queries: int
    num_keys: int
    num_square: int
    """The first so many queries ..."""
    prefix: int
    """... see the first so many keys; each query after them sees one key more, the last one all keys."""
    window: int | None = None
    """Of these keys those in a window of so many tokens (`before`, `around`); empty where it would hide none."""

    @property
    def before(self) -> int:
        """Keys before its own place that a query after the square sees at most."""
        return self.num_keys if self.window is None else self.window - 1

    @property
    def around(self) -> int:
        """Keys before its own place that a query of the square sees at most, and keys after it."""
        return self.num_keys if self.window is None else self.window // 2

    @property
    def num_causal(self) -> int:
        """Queries after those of the square; never more than keys."""
        return self.num_queries - self.num_square

    @property
    def first_place(self) -> int:
        """Place of the first query among the keys."""
        return self.num_keys - self.num_queries

    @property
    def is_causal(self) -> bool:
        """Whether each query sees the keys up to its own place; a prefix of one token changes nothing about that."""
        return self.num_square == 0 or self.num_keys == 0

    @property
    def is_bidirectional(self) -> bool:
        """Whether all queries see all keys; a single query does in either way."""
        whole = self.num_causal == 0 and self.prefix == self.num_keys
        return whole or (self.num_square == 0 and self.num_causal <= 1)

    @property
    def num_pairs(self) -> int:
        """Allowed query-key pairs."""
        causal = self.num_causal
        if self.window is None:
            return self.num_square * self.prefix + causal * self.num_keys - causal * (causal - 1) // 2
        square = self.num_square + 2 * _sum_up_to(self.num_square - 1, self.around)
        return square + causal + _sum_up_to(self.num_keys - 1, self.before) - _sum_up_to(self.prefix - 1, self.before)

    def within(self, window: int) -> "Document":
        """The same document, as far as a window of so many tokens lets its queries see."""
        assert self.num_queries == self.num_keys, "only a document that attends to itself has a window"
        hides = self.num_square > window // 2 + 1 or (self.num_causal > 0 and self.num_keys > window)
        return self._replace(window=window) if hides else self


def _sum_up_to(last: int, limit: int) -> int:
    """Sum of min(i, limit) over i from 0 to last; 0 where last is less than 1."""
    low = max(min(last, limit), 0)
    return low * (low + 1) // 2 + max(last - low, 0) * limit


@dataclasses.dataclass(frozen=True)
class PrefixSplit:
    """A pack taken apart into the squares of its documents and what is causal, for kernels that take two calls."""

    square_queries: torch.Tensor
    """int64 [Ts], places of the queries of the squares in the pack."""
    square_keys: torch.Tensor
    """int64 [Tp], places of the keys of the squares in the pack."""
    causal_queries: torch.Tensor
    """int64 [Tq - Ts], places of the other queries, which see keys of their whole document."""
    inverse: torch.Tensor
    """int64 [Tq], where each query of the pack stands in square queries followed by causal queries."""
    cu_square_queries: torch.Tensor
    """int32 [N+1], borders of the documents in `square_queries`."""
    cu_square_keys: torch.Tensor
    """int32 [N+1], borders of the documents in `square_keys`."""
    cu_causal_queries: torch.Tensor
    """int32 [N+1], borders of the documents in `causal_queries`."""
    max_square_queries: int
    max_square_keys: int
    max_causal_queries: int

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PrefixSplit":
        """The same with `change` made to every tensor."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **changed)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionPattern:
    """Allowed query-key pairs of one pack of Tq queries and Tk keys; made with `packed`, `causal`, `cross` or `within`.

    Lengths are kept on the host too, so that no kernel waits for the device to learn them.
    """

    cu_seqlens_q: torch.Tensor
    """int32 [N+1], borders of the documents: queries cu_seqlens_q[j] up to cu_seqlens_q[j+1] are of document j."""
    cu_seqlens_k: torch.Tensor
    """int32 [N+1], the same of the keys."""
    documents: tuple[Document, ...]
    """What is allowed in each document."""
    window: int | None = None
    """Of how many tokens the window of the documents is, where one of them is longer than that."""

    @classmethod
    def packed(cls, cu_seqlens: torch.Tensor, prefix_lengths: torch.Tensor) -> "AttentionPattern":
        """Pattern of the documents of a pack attending to themselves.

        cu_seqlens int [N+1], prefix_lengths int [N]; give host tensors (then `.to(device)`), reading
        them from a device waits for it.
        """
        return cls._of(cu_seqlens, cu_seqlens, prefix_lengths.tolist())

    @classmethod
    def cross(cls, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor) -> "AttentionPattern":
        """Pattern of two packs, int [N+1] each: document j of the queries sees all of document j of the keys.

        A document may be empty in either; a query without keys gives 0.
        """
        return cls._of(cu_seqlens_q, cu_seqlens_k, cu_seqlens_k.diff().tolist())

    @classmethod
    def causal(cls, lengths: list[int]) -> "AttentionPattern":
        """Pattern of causal documents of these lengths, in this order."""
        borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls.packed(borders, torch.zeros(len(lengths), dtype=torch.int32))

    @classmethod
    def _of(cls, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, prefixes: list[int]) -> "AttentionPattern":
        same = cu_seqlens_q is cu_seqlens_k
        queries = _lengths(cu_seqlens_q)
        keys = queries if same else _lengths(cu_seqlens_k)
        assert len(queries) == len(keys) == len(prefixes), "as many documents of queries, of keys and prefix lengths"
        assert all(0 <= p <= n for p, n in zip(prefixes, keys, strict=True)), "prefix lengths lie in 0 ... length"
        covered = all(p == n or m <= n for m, n, p in zip(queries, keys, prefixes, strict=True))
        assert covered, "more queries than keys only where all keys are in the prefix"
        documents = tuple(_document(*sizes) for sizes in zip(queries, keys, prefixes, strict=True))
        cu_seqlens_q = cu_seqlens_q.int()
        return cls(cu_seqlens_q, cu_seqlens_q if same else cu_seqlens_k.int(), documents)

    def within(self, window: int | None) -> "AttentionPattern":
        """The same documents, as far as a window of so many tokens lets their queries see; itself without one.

        Worked out once, and taken along to a device by `to`.
        """
        if window is None:
            return self
        if window not in self._windowed:
            documents = tuple(document.within(window) for document in self.documents)
            self._windowed[window] = self if documents == self.documents else self._narrowed(documents, window)
        return self._windowed[window]

    def ahead(self, depth: int) -> "AttentionPattern":
        """The same documents where each token has been told the one so many places on (multi-token prediction).

        A prefix is as many tokens shorter: its last ones know the first tokens after it, which its others must not.
        """
        if depth not in self._ahead:
            documents = tuple(
                _document(n, n, max(document.prefix - depth, 0)) if document.prefix else document
                for document in self.documents
                for n in [document.num_queries]
            )
            same = documents == self.documents
            self._ahead[depth] = self if same else dataclasses.replace(self, documents=documents)
        return self._ahead[depth]

    @functools.cached_property
    def _ahead(self) -> dict[int, "AttentionPattern"]:
        return {}

    def _narrowed(self, documents: tuple[Document, ...], window: int) -> "AttentionPattern":
        """The same borders; the parts of a split are those of the whole pattern."""
        narrowed = dataclasses.replace(self, documents=documents, window=window)
        if "split" in self.__dict__:
            narrowed.__dict__["split"] = self.split
        return narrowed

    @functools.cached_property
    def _windowed(self) -> dict[int, "AttentionPattern"]:
        return {}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "AttentionPattern":
        """The same pattern with its tensors on another device."""
        if self.cu_seqlens_q.device == torch.device(device):
            return self
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin(self) -> "AttentionPattern":
        """The same pattern in page-locked memory, from which a GPU copies in the background."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def prepare(self) -> "AttentionPattern":
        """Works out now what kernels will ask of it, so that it goes along to a device ready; returns itself."""
        for pattern in (self, *self._windowed.values()):
            for name in _DERIVED:
                getattr(pattern, name)
        if not (self.is_causal or self.is_bidirectional):
            _ = self.split
        for pattern in self._ahead.values():
            if pattern is not self:
                pattern.prepare()
        return self

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "AttentionPattern":
        queries = change(self.cu_seqlens_q)
        keys = queries if self.cu_seqlens_k is self.cu_seqlens_q else change(self.cu_seqlens_k)
        changed = dataclasses.replace(self, cu_seqlens_q=queries, cu_seqlens_k=keys)
        changed._know_of(self)
        if "split" in self.__dict__:
            changed.__dict__["split"] = self.split.with_tensors(change)
        for window, pattern in self._windowed.items():
            changed._windowed[window] = changed if pattern is self else changed._narrowed(pattern.documents, window)
            changed._windowed[window]._know_of(pattern)
        for depth, pattern in self._ahead.items():
            changed._ahead[depth] = changed if pattern is self else pattern._with_tensors(change)
        return changed

    def _know_of(self, same: "AttentionPattern") -> None:
        """Takes over what was worked out of the same documents."""
        self.__dict__.update({name: same.__dict__[name] for name in _DERIVED if name in same.__dict__})

    @functools.cached_property
    def num_queries(self) -> int:
        """Queries of the pack, Tq."""
        return sum(document.num_queries for document in self.documents)

    @functools.cached_property
    def num_keys(self) -> int:
        """Keys of the pack, Tk."""
        return sum(document.num_keys for document in self.documents)

    @functools.cached_property
    def max_queries(self) -> int:
        """Queries of the document that has most."""
        return max((document.num_queries for document in self.documents), default=0)

    @functools.cached_property
    def max_keys(self) -> int:
        """Keys of the document that has most."""
        return max((document.num_keys for document in self.documents), default=0)

    @functools.cached_property
    def num_pairs(self) -> int:
        """Allowed query-key pairs: the exact work of attention, per head."""
        return sum(document.num_pairs for document in self.documents)

    @functools.cached_property
    def is_causal(self) -> bool:
        """Whether every document is causal."""
        return all(document.is_causal for document in self.documents)

    @functools.cached_property
    def is_bidirectional(self) -> bool:
        """Whether in every document all queries see all keys."""
        return all(document.is_bidirectional for document in self.documents)

    @functools.cached_property
    def split(self) -> PrefixSplit:
        """Squares and causal parts apart."""
        squares = [document.num_square for document in self.documents]
        prefixes = [document.prefix for document in self.documents]
        causals = [document.num_causal for document in self.documents]
        in_square = _is_first(squares, [document.num_queries for document in self.documents])
        in_prefix = _is_first(prefixes, [document.num_keys for document in self.documents])
        square_queries, causal_queries = in_square.nonzero().flatten(), (~in_square).nonzero().flatten()
        device = self.cu_seqlens_q.device
        return PrefixSplit(
            square_queries=square_queries.to(device),
            square_keys=in_prefix.nonzero().flatten().to(device),
            causal_queries=causal_queries.to(device),
            inverse=torch.cat((square_queries, causal_queries)).argsort().to(device),
            cu_square_queries=_borders(squares, device),
            cu_square_keys=_borders(prefixes, device),
            cu_causal_queries=_borders(causals, device),
            max_square_queries=max(squares, default=0),
            max_square_keys=max(prefixes, default=0),
            max_causal_queries=max(causals, default=0),
        )

    def dense_mask(self) -> torch.Tensor:
        """Bool [Tq, Tk], true where the query (row) may see the key (column)."""
        rows, columns = self._tokens()
        same = rows.document[:, None] == columns.document[None, :]
        place, own, prefix = columns.place[None, :], rows.place[:, None], rows.prefix[:, None]
        sees = (place <= own) | (place < prefix)
        if self.window is not None:
            near = (place - own).abs() <= self.window // 2
            sees &= torch.where(own < prefix, near, own - place < self.window)
        return same & sees

    def dense_distances(self) -> torch.Tensor:
        """int64 [Tq, Tk], place of the key minus place of the query; of no meaning across documents."""
        rows, columns = self._tokens()
        return columns.place[None, :] - rows.place[:, None]

    def _tokens(self) -> tuple["_Tokens", "_Tokens"]:
        """Queries and keys, one by one."""
        device = self.cu_seqlens_q.device
        offsets = [document.first_place for document in self.documents]
        prefixes = torch.tensor([document.prefix for document in self.documents], device=device)
        rows = _tokens_of([document.num_queries for document in self.documents], offsets, prefixes)
        columns = _tokens_of([document.num_keys for document in self.documents], [0] * len(offsets), prefixes)
        return rows, columns


_DERIVED = ("num_queries", "num_keys", "max_queries", "max_keys", "num_pairs", "is_causal", "is_bidirectional")
"""What is worked out from the documents once: the same on every device."""


class _Tokens(NamedTuple):
    document: torch.Tensor
    place: torch.Tensor
    prefix: torch.Tensor


def _tokens_of(lengths: list[int], offsets: list[int], prefixes: torch.Tensor) -> _Tokens:
    device = prefixes.device
    repeats = torch.tensor(lengths, device=device, dtype=torch.int64)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=device), repeats)
    shift = torch.tensor(offsets, device=device, dtype=torch.int64) - (repeats.cumsum(0) - repeats)
    place = torch.arange(document.shape[0], device=device) + shift[document]
    return _Tokens(document, place, prefixes.long()[document])


def _document(num_queries: int, num_keys: int, prefix: int) -> Document:
    first_place = num_keys - num_queries
    if num_queries == 0 or prefix <= first_place + 1:  # what causal attention allows anyway
        return Document(num_queries, num_keys, 0, 0)
    return Document(num_queries, num_keys, prefix - first_place, prefix)


def _lengths(cu_seqlens: torch.Tensor) -> list[int]:
    borders = cu_seqlens.tolist()
    assert borders[0] == 0, "borders begin at 0"
    lengths = [stop - start for start, stop in pairwise(borders)]
    assert all(n >= 0 for n in lengths), "borders ascend"
    return lengths


def _borders(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _is_first(counts: list[int], lengths: list[int]) -> torch.Tensor:
    """Bool [T], true for the first so many tokens of each document."""
    repeats = torch.tensor(lengths, dtype=torch.int64)
    ends = repeats.cumsum(0) - repeats + torch.tensor(counts, dtype=torch.int64)
    return torch.arange(sum(lengths)) < ends.repeat_interleave(repeats)
