"""Which part of a checkpoint holds which elements: `index.json`, and the plan by which a rank reads what it needs.

    boxes of tensors, one after another -> cut between parts -> the same run of elements in each kind of state

A *cut* is a rule, not a list of pieces: the boxes form one flat sequence that is cut at given bounds (ZeRO 1 and 2,
arXiv 1910.02054, and what is replicated), or each box is cut evenly (ZeRO 3). So the index grows with tensors plus
parts, not with their product, and a look-up costs a binary search or one pass over the boxes.
"""

import bisect
import dataclasses
import itertools
import json
import math
import operator
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from common.json_lines import parse_json
from training.state.boxes import Box, shared
from training.state.layout import Layout, Slice

WEIGHT = "weight"
"""Name of the fp32 weights among the kinds of state; the others are named as the optimizer names them."""


@dataclasses.dataclass(frozen=True)
class Held:
    """Consecutive elements of a box, where a part holds them."""

    part: int
    """Number of the part."""
    offset: int
    """Where in each kind of state of the part."""
    start: int
    """First element inside the box."""
    length: int
    """How many, at least 1."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Boxes that parts share by one rule."""

    boxes: tuple[Box, ...]
    """In their order."""
    first_part: int
    """Number of the first part that holds some of them."""
    num_parts: int
    """How many consecutive parts do."""
    bounds: tuple[int, ...] | None
    """Where the sequence of all boxes is cut, from 0 to its end, one more than parts; None cuts each group evenly."""
    groups: tuple[int, ...] | None = None
    """How many consecutive boxes are cut together where groups are cut evenly; None for one each."""
    num_kinds: int | None = None
    """How many kinds of state its boxes have, the first so many of the index; None for all."""

    def has(self, kind: int) -> bool:
        """Whether its boxes have the kind of state of that number."""
        return self.num_kinds is None or kind < self.num_kinds

    @cached_property
    def _begins(self) -> list[int]:
        """Where each box begins in the sequence, and its end."""
        return [0, *itertools.accumulate(box.size for box in self.boxes)]

    @cached_property
    def _first_boxes(self) -> list[int]:
        """Number of the first box of each group, and of the one that would come next."""
        groups = itertools.repeat(1, len(self.boxes)) if self.groups is None else self.groups
        return [0, *itertools.accumulate(groups)]

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct sizes of groups, and which of them each group has."""
        begins = self._begins
        sizes = [begins[last] - begins[first] for first, last in itertools.pairwise(self._first_boxes)]
        return np.unique(sizes, return_inverse=True)

    @cached_property
    def _ends(self) -> dict[bytes, np.ndarray]:
        """By shares of the distinct sizes: parts are alike but for where a size runs out, so these are few."""
        return {}

    def ends(self, part: int) -> np.ndarray:
        """Elements that a part holds of the groups up to each, where each group is cut evenly."""
        sizes, which = self._sizes
        shares = -(-sizes // self.num_parts)
        own = np.clip(sizes - (part - self.first_part) * shares, 0, shares)
        key = own.tobytes()
        if key not in self._ends:
            self._ends[key] = np.cumsum(own[which])
        return self._ends[key]

    def size(self, part: int) -> int:
        """Elements that a part holds of this cut."""
        number = part - self.first_part
        if not 0 <= number < self.num_parts or not self.boxes:
            return 0
        return int(self.ends(part)[-1]) if self.bounds is None else self.bounds[number + 1] - self.bounds[number]

    def holders(self, number: int, start: int, length: int) -> Iterator[Held]:
        """Who holds elements of the box of that number; offsets count from where this cut begins in a part."""
        find = self._evenly if self.bounds is None else self._by_bounds
        yield from find(number, start, length)

    def _by_bounds(self, number: int, start: int, length: int) -> Iterator[Held]:
        assert self.bounds is not None
        box = self._begins[number]
        at, end = box + start, box + start + length
        part = bisect.bisect_right(self.bounds, at) - 1
        while at < end:
            until = min(end, self.bounds[part + 1])
            if until > at:
                yield Held(self.first_part + part, at - self.bounds[part], at - box, until - at)
            at, part = until, part + 1

    def _evenly(self, number: int, start: int, length: int) -> Iterator[Held]:
        group = bisect.bisect_right(self._first_boxes, number) - 1
        group_begins, group_ends = (self._begins[self._first_boxes[place]] for place in (group, group + 1))
        size, box = group_ends - group_begins, self._begins[number] - group_begins
        share, start, end = -(-size // self.num_parts), box + start, box + start + length
        for part in range(start // share, -(-end // share)):
            first, last = max(start, part * share), min(end, (part + 1) * share, size)
            before = int(self.ends(self.first_part + part)[group - 1]) if group else 0
            yield Held(self.first_part + part, before + first - part * share, first - box, last - first)


@dataclasses.dataclass(frozen=True)
class Copy:
    """Elements to read from a part into a vector of a rank."""

    source: int
    """Where in each kind of state of the part."""
    vector: int
    """Number of the vector."""
    target: int
    """Where in it."""
    length: int
    """How many."""


@dataclasses.dataclass(frozen=True)
class Index:
    """What the parts of a checkpoint hold."""

    kinds: tuple[str, ...]
    """Names of the kinds of state, in their order inside a part; the weights come first."""
    updates: int
    """Steps that the optimizer has done."""
    cuts: tuple[Cut, ...]
    """Each part holds its share of the first, then of the second, and so on; those with fewer kinds of state come
    last, so that an element has the same place in each kind."""

    @property
    def num_parts(self) -> int:
        """Number of part files."""
        return max((cut.first_part + cut.num_parts for cut in self.cuts), default=0)

    def size(self, part: int, kind: str = WEIGHT) -> int:
        """Elements that a part holds of a kind of state."""
        number = self.kinds.index(kind)
        return sum(cut.size(part) for cut in self.cuts if cut.has(number))

    @cached_property
    def _by_name(self) -> dict[str, list[tuple[int, int]]]:
        places: dict[str, list[tuple[int, int]]] = {}
        for cut, each in enumerate(self.cuts):
            for number, box in enumerate(each.boxes):
                places.setdefault(box.name, []).append((cut, number))
        return places

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors by name, in their order."""
        return {name: self.cuts[cut].boxes[number].tensor for name, ((cut, number), *_) in self._by_name.items()}

    def names(self, kind: str) -> Iterator[str]:
        """Names of the tensors that have a kind of state, in their order."""
        number = self.kinds.index(kind)
        return (name for name, ((cut, _), *_) in self._by_name.items() if self.cuts[cut].has(number))

    def find(self, box: Box, start: int, length: int) -> Iterator[tuple[Held, int]]:
        """Who holds elements `start` to `start + length` of a box, and where in the box theirs begin.

        Every element comes once. AssertionError when one is nowhere.
        """
        missing = length
        for number, place in self._by_name.get(box.name, ()):
            cut = self.cuts[number]
            for mine, theirs, run in shared(box, cut.boxes[place]):
                first, last = max(start, mine), min(start + length, mine + run)
                if first >= last:
                    continue
                missing -= last - first
                for held in cut.holders(place, first + theirs - mine, last - first):
                    base = sum(before.size(held.part) for before in self.cuts[:number])
                    yield dataclasses.replace(held, offset=base + held.offset), held.start + mine - theirs
        assert missing == 0, f"{missing} elements of {box.name} are nowhere in the checkpoint"

    def copies(self, target: Layout, rank: int) -> dict[int, list[Copy]]:
        """What fills the vectors of `rank` of `target`, by part; every element of a tensor once, padding left out."""
        plan: dict[int, list[Copy]] = {}
        for piece in target.slices(rank):
            for held, at in self.find(piece.box, piece.start, piece.length):
                copy = Copy(held.offset, piece.vector, piece.offset + at - piece.start, held.length)
                copies = plan.setdefault(held.part, [])
                if copies and _follows(copies[-1], copy):
                    copies[-1] = dataclasses.replace(copies[-1], length=copies[-1].length + copy.length)
                else:
                    copies.append(copy)
        return plan

    def dumps(self) -> bytes:
        """As JSON."""
        cuts = [
            {
                "parts": [cut.first_part, cut.num_parts],
                "bounds": "even" if cut.bounds is None else list(cut.bounds),
                "boxes": [_box_as_json(box) for box in cut.boxes],
                **({} if cut.groups is None else {"groups": list(cut.groups)}),
                **({} if cut.num_kinds is None else {"kinds": cut.num_kinds}),
            }
            for cut in self.cuts
        ]
        return json.dumps({"kinds": list(self.kinds), "updates": self.updates, "cuts": cuts}).encode()

    @classmethod
    def loads(cls, data: bytes) -> "Index":
        """From JSON. ValueError when it is not whole and consistent: every element in one place, and no other."""
        try:
            facts = parse_json(data)
            cuts = tuple(_cut_from_json(cut) for cut in facts["cuts"])
            index = cls(tuple(map(str, facts["kinds"])), operator.index(facts["updates"]), cuts)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"not an index ({type(error).__name__}: {error})") from None
        index._check()
        return index

    def _check(self) -> None:
        if self.kinds[:1] != (WEIGHT,) or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds of state {list(self.kinds)}")
        for cut in self.cuts:
            bounds, groups = cut.bounds, cut.groups
            if groups is not None and (min(groups, default=1) < 1 or sum(groups) != len(cut.boxes)):
                raise ValueError("groups that do not take in every box")
            if cut.num_kinds is not None and not 1 <= cut.num_kinds <= len(self.kinds):
                raise ValueError(f"a cut with {cut.num_kinds} of {len(self.kinds)} kinds of state")
            if cut.num_parts < 1 or cut.first_part < 0 or not all(box.is_inside for box in cut.boxes):
                raise ValueError("a cut of no parts, or a box outside of its tensor")
            if bounds is not None and (
                len(bounds) != cut.num_parts + 1
                or (bounds[0], bounds[-1]) != (0, cut._begins[-1])
                or any(a > b for a, b in itertools.pairwise(bounds))
            ):
                raise ValueError("bounds that do not lead from the first element to the last")
        for one, other in itertools.pairwise(self.cuts):
            if one.first_part == other.first_part and (other.num_kinds or math.inf) > (one.num_kinds or math.inf):
                raise ValueError("a cut with more kinds of state than the one before it")
        for name, places in self._by_name.items():
            if len({self.cuts[cut].num_kinds for cut, _ in places}) > 1:
                raise ValueError(f"boxes of {name} with other kinds of state")
            boxes = [self.cuts[cut].boxes[number] for cut, number in places]
            apart = all(next(shared(one, other), None) is None for one, other in itertools.combinations(boxes, 2))
            shapes = {box.tensor for box in boxes}
            if not apart or len(shapes) > 1 or sum(box.size for box in boxes) != math.prod(shapes.pop()):
                raise ValueError(f"boxes of {name} that do not make up the tensor")


def index_of(layout: Layout, kinds: Sequence[str], updates: int, num_parts: int, *others: Layout) -> Index:
    """Index of a checkpoint that `num_parts` ranks of this layout write; what is replicated they share by size.

    `others` are the layouts of ranks that hold other parts of the same tensors, as many of each; their parts follow.
    """
    layouts = (layout, *others)
    cuts = (cuts_of(each, num_parts, number * num_parts) for number, each in enumerate(layouts))
    return Index(tuple(kinds), updates, tuple(itertools.chain.from_iterable(cuts)))


def cuts_of(layout: Layout, num_parts: int, first: int = 0) -> tuple[Cut, ...]:
    """How `num_parts` writing ranks of a layout cut it; `first` is the number of their first part."""
    written = [tuple(layout.written(i)) for i in range(len(layout.vectors))]
    if layout.is_replicated:
        return tuple(_by_size(boxes, first, num_parts, kinds) for kinds, boxes in _alike(layout))
    boxes = tuple(itertools.chain.from_iterable(written))
    assert layout.num_ranks == num_parts, f"{num_parts} writers of a state that {layout.num_ranks} ranks share"
    if layout.cuts_parameters:
        shares = itertools.chain.from_iterable(map(layout.shares, range(len(layout.vectors))))
        groups = tuple(len(share) for share in shares if share[0].name not in layout.copies)
        return (Cut(boxes, first, num_parts, None, groups if layout.groups else None),)
    kinds = layout.num_kinds or itertools.repeat(None)
    return tuple(
        Cut(each, first, num_parts, layout.bounds(i), num_kinds=count)
        for i, (each, count) in enumerate(zip(written, kinds, strict=False))
    )


def _alike(layout: Layout) -> Iterator[tuple[int | None, tuple[Box, ...]]]:
    """Boxes to be written of consecutive vectors with as many kinds of state, and how many; None for all there are."""
    kinds: Sequence[int | None] = layout.num_kinds or [None] * len(layout.vectors)
    for count, numbers in itertools.groupby(range(len(layout.vectors)), kinds.__getitem__):
        yield count, tuple(itertools.chain.from_iterable(map(layout.written, numbers)))


def _by_size(boxes: tuple[Box, ...], first: int, num_parts: int, num_kinds: int | None) -> Cut:
    total = sum(box.size for box in boxes)
    bounds = tuple(total * part // num_parts for part in range(num_parts + 1))
    return Cut(boxes, first, num_parts, bounds, num_kinds=num_kinds)


def written_slices(layout: Layout, rank: int, num_parts: int) -> Iterator[Slice]:
    """Which elements of its vectors a rank writes into its part, in the order that `cuts_of` says."""
    held = layout.slices(0 if layout.is_replicated else rank)
    pieces = (piece for piece in held if piece.box.name not in layout.copies)
    if not layout.is_replicated:
        yield from pieces
        return
    for _, boxes in _alike(layout):
        total, at = sum(box.size for box in boxes), 0
        begin, end = total * rank // num_parts, total * (rank + 1) // num_parts
        for piece in itertools.islice(pieces, len(boxes)):
            first, last = max(begin, at), min(end, at + piece.length)
            if first < last:
                yield Slice(piece.box, first - at, piece.vector, piece.offset + first - at, last - first)
            at += piece.length


def _follows(last: Copy, copy: Copy) -> bool:
    """Whether a copy goes on where the last one ended, at both ends."""
    return (copy.vector, copy.source - last.source, copy.target - last.target) == (
        last.vector,
        last.length,
        last.length,
    )


def _whole(numbers: Sequence[Any]) -> tuple[int, ...]:
    """Whole numbers, as JSON has them. TypeError where one is something else."""
    return tuple(map(operator.index, numbers))


def _box_as_json(box: Box) -> list[Any]:
    return [box.name, box.tensor] if box.is_whole else [box.name, box.tensor, box.offset, box.shape]


def _cut_from_json(facts: dict[str, Any]) -> Cut:
    first_part, num_parts = _whole(facts["parts"])
    boxes = []
    for name, tensor, *block in facts["boxes"]:
        offset, shape = block or ([0] * len(tensor), tensor)
        boxes.append(Box(str(name), *map(_whole, (tensor, offset, shape))))
    bounds = None if facts["bounds"] == "even" else _whole(facts["bounds"])
    groups = _whole(facts["groups"]) if "groups" in facts else None
    num_kinds = operator.index(facts["kinds"]) if "kinds" in facts else None
    return Cut(tuple(boxes), first_part, num_parts, bounds, groups, num_kinds)
