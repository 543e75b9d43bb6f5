"""Plans: the parts of a document that stand in a context as tokens, or as gists of a level. Pure: no torch, no text.

A plan is a list of pieces in the order of the document, without overlaps; text between two pieces is left out. Gists of
a level stand for blocks of `tokens_per_gist` tokens that begin at multiples of that number.

The first tokens of a context are its attention sink and stay raw (docs/decisions.md, 11). Were the sink a piece, the
gists of its blocks could not stand: with branchings of 32 and 32, 4 raw tokens would cost the 1020 that follow, or 59
vectors in place of one to say them in smaller pieces. So the sink is raw *beside* the pieces: the first `sink_tokens`
come first as tokens even where a gist stands for their span. The model reads those few tokens twice, nothing is left
out, and it costs no more than their number. A context with a template's head or a BOS before the document has its sink
there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gistnet.errors import ConfigError, DataError
from gistnet.tree.encoder import tokens_per_gist

RAW_LEVEL = -1
"""The level of a raw token: one below the gists that are made of tokens."""


@dataclass(frozen=True)
class Raw:
    """Tokens `start` to `stop - 1` as they are."""

    start: int
    stop: int

    @property
    def level(self) -> int:
        """`RAW_LEVEL`."""
        return RAW_LEVEL


@dataclass(frozen=True)
class Gists:
    """Gists `start` to `stop - 1` of a level, by their index."""

    level: int
    start: int
    stop: int


Piece = Raw | Gists


@dataclass(frozen=True)
class Plan:
    """Parts of a document that a context holds.

    Attributes:
        pieces: in the order of the document and without overlaps. Empty ones are left out and neighbours of one level
            joined, so that plans that mean the same are equal.
        branchings: of each level, as the document has them; those of its highest levels may be left out.
        sink_tokens: so many first tokens stand raw in front, whatever the pieces are; at most half a span of level 0,
            so that they precede the first gist in every position policy. (For a longer one, let the plan begin with a
            `Raw`.)

    Raises:
        DataError: pieces that are out of order, overlap, are no ranges, or are of a level that there is not.
        ConfigError: no such branching or sink.
    """

    pieces: Sequence[Piece]
    branchings: Sequence[int]
    sink_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "branchings", tuple(self.branchings))
        if any(branching < 2 for branching in self.branchings):
            raise ConfigError(f"Got the branchings {list(self.branchings)}, expected 2 or more of each level.")
        longest_sink = self.branchings[0] // 2 if self.branchings else self.sink_tokens
        if not 0 <= self.sink_tokens <= longest_sink:
            raise ConfigError(f"Got a sink of {self.sink_tokens} tokens, expected 0 to {longest_sink}, half a span.")
        end = 0
        for piece in self.pieces:
            start, stop = self.extent(piece)
            if not piece.start <= piece.stop or start < end:
                raise DataError(
                    f"Got {piece} after token {end}, expected pieces in the order of the document and without overlaps."
                )
            end = stop
        object.__setattr__(self, "pieces", tuple(_joined(self.pieces)))

    def extent(self, piece: Piece) -> tuple[int, int]:
        """The first token that a piece stands for, and the one after its last."""
        size = tokens_per_gist(self.branchings, piece.level)
        return piece.start * size, piece.stop * size

    @property
    def sink(self) -> Raw:
        """The raw tokens in front of the pieces: the first `sink_tokens`, but for those that a raw piece has."""
        first = self.pieces[0] if self.pieces else None
        return Raw(0, min(self.sink_tokens, first.start) if isinstance(first, Raw) else self.sink_tokens)

    @property
    def order(self) -> tuple[Piece, ...]:
        """Everything a context holds, in order: the sink, where there is one, and the pieces."""
        return (self.sink, *self.pieces) if self.sink.stop else tuple(self.pieces)

    @property
    def end(self) -> int:
        """The token after the last one that the plan stands for."""
        return self.extent(self.pieces[-1])[1] if self.pieces else self.sink.stop

    @property
    def vectors(self) -> int:
        """Number of vectors of the context."""
        return sum(piece.stop - piece.start for piece in self.order)

    @property
    def tokens_covered(self) -> int:
        """Number of tokens of the document that something stands for; the others are left out."""
        extents = [self.extent(piece) for piece in self.pieces]
        sink_alone = min(self.sink.stop, extents[0][0]) if extents else self.sink.stop
        return sink_alone + sum(stop - start for start, stop in extents)


def expand(plan: Plan, level: int, index: int) -> Plan:
    """The plan with a gist replaced by its children: gists of the level below, or its tokens.

    Raises:
        DataError: the gist is not in the plan.
    """
    if not any(p.level == level >= 0 and p.start <= index < p.stop for p in plan.pieces):
        raise DataError(f"Got gist {index} of level {level} to expand, expected one that the plan holds.")
    branching = plan.branchings[level]
    children = _piece(level - 1, index * branching, (index + 1) * branching)
    return _replaced(plan, Gists(level, index, index + 1), children)


def collapse(plan: Plan, level: int, index: int) -> Plan:
    """The plan with a gist in place of everything finer that stands for its tokens; undoes any number of `expand`.

    Raises:
        DataError: there is no such gist, or something else than finer pieces stands for its tokens, or nothing.
    """
    if level < 0 or index < 0:
        raise DataError(f"Got gist {index} of level {level} to collapse to, expected a level and an index from 0 on.")
    gist = Gists(level, index, index + 1)
    start, stop = plan.extent(gist)
    inside = list(_within(plan, start, stop))
    if any(piece.level >= level for piece in inside):
        raise DataError(f"Got gist {index} of level {level} to collapse to, but the plan holds it or one above it.")
    if sum(b - a for a, b in map(plan.extent, inside)) != stop - start:
        raise DataError(f"Got gist {index} of level {level} to collapse to, but the plan leaves out some of its text.")
    return _replaced(plan, gist, gist)


def default_plan(
    n_tokens: int,
    branchings: Sequence[int],
    budget: int,
    *,
    sink_tokens: int = 4,
    raw_share: float = 0.25,
) -> Plan:
    """Recent tokens raw, older ones as gists of level 0, still older ones of level 1, and so on, in at most `budget`.

    The whole document is covered wherever gists of the coarsest level allow it at all; `tokens_covered` tells whether
    they did. Otherwise the oldest text is left out (but for the sink). A level is used only where the finer ones with
    their share do not hold everything; what the budget has left over makes more of the recent text raw.

    Args:
        n_tokens: tokens of the document.
        branchings: of each level of gists that may be used, from level 0 on.
        budget: the most vectors that the plan may have, without prompt and template.
        sink_tokens: first tokens that stay raw (docs/decisions.md, 11), at most half a span of level 0.
        raw_share: the part of the budget that recent raw tokens keep, to the nearest whole span, where coarser levels
            must be used for it; each level keeps the same part of what is left to it. Covering the document goes
            before.

    Raises:
        ConfigError: a size out of its range, or a budget that leaves nothing beside the sink.
    """
    if n_tokens < 0 or not 0 <= raw_share <= 1:
        raise ConfigError(
            f"Got {n_tokens} tokens and a raw share of {raw_share}, expected 0 tokens or more and a share of 0 to 1."
        )
    if n_tokens <= budget:
        return Plan([Raw(0, n_tokens)], branchings, min(sink_tokens, n_tokens))
    if budget <= sink_tokens:
        raise ConfigError(f"Got a budget of {budget} vectors, expected more than the sink's {sink_tokens}.")
    pieces = _Filling(branchings, raw_share).pieces(RAW_LEVEL, n_tokens, budget - sink_tokens)
    plan = Plan(pieces, branchings, sink_tokens)
    return replace(plan, pieces=_opened(plan, budget - plan.vectors))


@dataclass(frozen=True)
class _Filling:
    """Shares of a budget among levels in `default_plan`."""

    branchings: Sequence[int]
    share: float

    @property
    def top(self) -> int:
        """The coarsest level."""
        return len(self.branchings) - 1

    def pieces(self, level: int, count: int, budget: int) -> list[Piece]:
        """Pieces for the first `count` nodes of a level, of that level and above: oldest first, `budget` vectors."""
        if level == self.top or count <= budget:
            return [_piece(level, max(0, count - budget), count)]
        own = self._own_nodes(level, count, budget)
        if own >= budget:
            return [_piece(level, count - budget, count)]
        older = self.pieces(level + 1, (count - own) // self.branchings[level + 1], budget - own)
        return [*older, _piece(level, count - own, count)]

    def _own_nodes(self, level: int, count: int, budget: int) -> int:
        """Number of the newest nodes that stay of this level: as many as end at a border of the level above."""
        block = self.branchings[level + 1]
        tail = count % block
        shared_blocks = max(0, round((self.share * budget - tail) / block))
        if self._fewest(level, count) > budget:
            return tail + shared_blocks * block
        blocks = next(
            n
            for n in range(shared_blocks, -1, -1)
            if tail + n * block + self._fewest(level + 1, count // block - n) <= budget
        )
        # Where the next level holds all the rest, whatever it leaves is this level's: a block more costs K - 1.
        return tail + max(blocks, (budget - tail - count // block) // (block - 1)) * block

    def _fewest(self, level: int, count: int) -> int:
        """The fewest vectors that stand for the first `count` nodes of a level: as coarse as can be."""
        if level == self.top:
            return count
        blocks, tail = divmod(count, self.branchings[level + 1])
        return tail + self._fewest(level + 1, blocks)


def _opened(plan: Plan, left: int) -> list[Piece]:
    """The pieces with the newest gists of each level opened, finer levels first, for at most `left` vectors more.

    A level whose branching is above those of finer ones leaves over what these can use.
    """
    pieces: list[Piece] = []
    for piece in reversed(plan.pieces):
        kept = piece.stop
        if isinstance(piece, Gists):
            branching = plan.branchings[piece.level]
            kept -= min(piece.stop - piece.start, left // (branching - 1))
            left -= (piece.stop - kept) * (branching - 1)
            pieces.append(_piece(piece.level - 1, kept * branching, piece.stop * branching))
        pieces.append(_piece(piece.level, piece.start, kept))
    return pieces[::-1]


def _piece(level: int, start: int, stop: int) -> Piece:
    return Raw(start, stop) if level == RAW_LEVEL else Gists(level, start, stop)


def _joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The pieces without empty ones, neighbours of one level joined."""
    last: Piece | None = None
    for piece in pieces:
        if piece.start == piece.stop:
            continue
        if last is not None and (last.level, last.stop) == (piece.level, piece.start):
            last = _piece(piece.level, last.start, piece.stop)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _within(plan: Plan, start: int, stop: int) -> Iterator[Piece]:
    """Parts of the pieces within tokens `start` to `stop - 1`: parts of finer ones, the whole of a coarser one."""
    for piece in plan.pieces:
        size = tokens_per_gist(plan.branchings, piece.level)
        first, last = max(piece.start, start // size), min(piece.stop, -(-stop // size))
        if first < last:
            yield _piece(piece.level, first, last)


def _replaced(plan: Plan, node: Gists, piece: Piece) -> Plan:
    """The plan with one piece for all of a node's tokens; no gist may stand across the node's borders."""
    start, stop = plan.extent(node)
    before, after = _within(plan, 0, start), _within(plan, stop, max(stop, plan.end))
    return replace(plan, pieces=[*before, piece, *after])
