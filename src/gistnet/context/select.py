"""A plan for a question: what a reader with a budget should see of a document.

Exact words are lost at 32 tokens to a vector. So the passages that a question needs are opened, that is read as tokens,
and what the budget has left is recent text. Where nothing is asked, a short row of gists stands before recent text.
Gists beside the passages have to be asked for: they have answered nothing more (docs/ablations.md).

    selection = select(document, "Who crossed the bridge?", budget=512, tokenizer=teacher.tokenizer)
    print(*selection.explain(document, teacher.tokenizer), sep="\n")
    generate(document, "Who crossed the bridge?", teacher=teacher, plan=selection.plan)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gistnet.context.plan import Gists, Piece, Plan, Raw
from gistnet.context.selectors import Hit, Selector, by_words
from gistnet.errors import ConfigError
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.tree.document import CompressedDocument
from gistnet.tree.passages import LONGEST, split_passages

RECENT_SHARE = 0.0
"""Part of the budget that recent text has beside what is opened: questions are answered best without it
(docs/ablations.md). What the passages leave is recent text all the same."""
ROW_SHARE = 1 / 8
"""Part of the vectors that gists of what stands just before recent text have, where nothing is opened: so prose is
predicted better than after recent text alone (docs/long-contexts.md), with a quarter it is not (docs/ablations.md)."""
FEWEST_OPENED = 16
"""Tokens that must be left for another hit to be opened."""
MOST_OPENED = 16
"""Hits that are opened, at most."""


class Opened(NamedTuple):
    """Tokens `start` to `stop - 1`, opened because of a hit with this score."""

    start: int
    stop: int
    score: float


@dataclass(frozen=True)
class Selection:
    """A plan, and the reasons for it.

    Attributes:
        plan: what stands in the context.
        opened: what was opened, best first.
        sources: the same in words, in the document's order.
    """

    plan: Plan
    opened: tuple[Opened, ...] = ()
    sources: str = ""

    def explain(self, document: CompressedDocument, tokenizer: TeacherTokenizer) -> list[str]:
        """A line for each piece that the model reads, in order: its tokens, vectors, why, and how it begins."""
        return list(self._lines(document, tokenizer))

    def _lines(self, document: CompressedDocument, tokenizer: TeacherTokenizer) -> Iterator[str]:
        for piece in self.plan.order:
            start, stop = self.plan.extent(piece)
            kind = "tokens" if isinstance(piece, Raw) else f"gists of level {piece.level}"
            because = [opened for opened in self.opened if start <= opened.start < stop]
            why = f"opened, score {max(of.score for of in because):.1f}" if because else ""
            text = " ".join(tokenizer.decode(document.tokens(start, min(stop, start + LONGEST)).tolist()).split())
            yield f"{document.label(start, stop):>19} {piece.stop - piece.start:>5} {kind:<17} {why:<19} {text[:60]}"


def select(
    document: CompressedDocument,
    query: str | None,
    budget: int,
    *,
    tokenizer: TeacherTokenizer,
    selector: Selector = by_words,
    sink_tokens: int = 4,
    gists_beside: int = 0,
    recent_share: float = RECENT_SHARE,
    row_share: float = ROW_SHARE,
) -> Selection:
    """Open what a query needs, within a budget of vectors.

    Where nothing is found, or asked, recent text has it, and a short row of gists stands for the text before, if the
    document's GistNet was trained on rows. All documents of a tree together have neither sink nor recent text: vectors
    that are left stay unused there.

    Args:
        document: in memory or of a tree.
        query: a question, or a text to continue; None opens nothing.
        budget: the most vectors of the plan, without prompt and template.
        tokenizer: of the document's teacher.
        selector: finds the passages that the query needs.
        sink_tokens: first tokens that stay raw (docs/decisions.md, 11).
        gists_beside: gists of level 0 on either side of what is opened, for which the budget keeps vectors; at most as
            many as the longest row that the document's GistNet was trained on.
        recent_share: part of the budget that recent text has beside what is opened.
        row_share: part of it that gists of the text before have where nothing is opened, in a row no longer than the
            document's GistNet was trained on.

    Raises:
        ConfigError: the budget leaves nothing beside the sink, there is no such share or number of gists, or more of
            them than the GistNet was trained on in a row.
    """
    if gists_beside < 0:
        raise ConfigError(f"Got {gists_beside} gists beside what is opened, expected 0 or more.")
    if document.longest_row and gists_beside > document.longest_row:
        raise ConfigError(
            f"Got {gists_beside} gists on either side of what is opened, expected at most {document.longest_row}, the "
            "longest row that the GistNet was trained on."
        )
    for name, share in (("recent", recent_share), ("row", row_share)):
        if not 0 <= share <= 1:
            raise ConfigError(f"Got a {name} share of {share}, expected 0 to 1.")
    n_tokens, branchings = document.n_tokens, document.branchings
    if not document.goes_on:
        sink_tokens = 0  # of a document that may have nothing to do with the query
    if n_tokens <= budget:
        return Selection(Plan([Raw(0, n_tokens)], branchings, min(sink_tokens, n_tokens)))
    if budget <= sink_tokens:
        raise ConfigError(f"Got a budget of {budget} vectors, expected more than the sink's {sink_tokens}.")
    vectors = budget - sink_tokens
    recent = int(recent_share * vectors)
    found = [] if query is None else selector(document, query, tokenizer)
    hits = [hit for hit in found if hit.passage.start < n_tokens - recent]  # recent text is read anyway
    opened = _opened(document, hits[:MOST_OPENED], vectors - recent, 2 * gists_beside, tokenizer)
    if not opened and document.goes_on:
        return Selection(Plan(_recent_behind_gists(document, vectors, row_share), branchings, sink_tokens))
    ranges = _merged((of.start, of.stop) for of in opened)
    beside = _beside(ranges, document, gists_beside, vectors - _size(ranges))
    pieces: list[Piece] = [*(Raw(*bounds) for bounds in ranges), *beside]
    left = vectors - _size(ranges) - len(beside) if document.goes_on else 0
    plan = Plan(_recent(pieces, Plan((), branchings), n_tokens, left), branchings, sink_tokens)
    return Selection(plan, tuple(opened), ", ".join(document.label(*bounds) for bounds in ranges))


def _opened(
    document: CompressedDocument, hits: Sequence[Hit], vectors: int, each: int, tokenizer: TeacherTokenizer
) -> list[Opened]:
    """Open hits, best first, in so many vectors: each with its paragraph and what follows, or as much of it as fits.

    `each` is the number of gists that a range shall have beside it.
    """
    opened: list[Opened] = []
    ranges: list[tuple[int, int]] = []
    for passage, score in hits:
        left = vectors - _size(ranges) - each * (len(ranges) + 1)
        if left < FEWEST_OPENED:
            break
        following = document.tokens(passage.stop, min(passage.stop + 2 * LONGEST, document.n_tokens))
        after = passage.stop + (split_passages(following, tokenizer)[0].stop if len(following) else 0)
        alone = passage.start, min(after, passage.start + left)
        wider = (passage.paragraph_start, max(passage.paragraph_stop, after)), passage[2:], (passage.start, after)
        # One hit takes half of what is left at most, so that there is some for the next: but for what is needed most.
        fitting = (bounds for bounds in wider if _size(_merged([*ranges, bounds])) - _size(ranges) <= left / 2)
        start, stop = next(fitting, alone)
        opened.append(Opened(start, stop, score))
        ranges = _merged([*ranges, (start, stop)])
    return opened


def _beside(ranges: Sequence[tuple[int, int]], document: CompressedDocument, count: int, vectors: int) -> list[Gists]:
    """Gists of level 0 before and behind each range, `count` on each side, where no range is; at most `vectors`."""
    if not count or not document.levels:
        return []
    size = document.branchings[0]
    taken = {block for start, stop in ranges for block in range(start // size, -(-stop // size))}
    wanted: list[int] = []
    for start, stop in ranges:
        before, behind = start // size, -(-stop // size)
        for block in (*range(before - count, before), *range(behind, behind + count)):
            if 0 <= block < document.n_gists[0] and block not in taken:
                taken.add(block)
                wanted.append(block)
    return [Gists(0, block, block + 1) for block in wanted[: max(0, vectors)]]


def _recent_behind_gists(document: CompressedDocument, vectors: int, row_share: float) -> list[Piece]:
    """Recent text, and before it a row of gists of level 0, as long as the GistNet was trained on at most."""
    n_tokens, row = document.n_tokens, 0
    if document.levels:
        # A gist gives back all of its tokens but one: so many can stand before recent text that is as much shorter.
        most = (n_tokens - vectors) // (document.branchings[0] - 1)
        row = min(int(row_share * vectors), document.longest_row, most)
    recent = n_tokens - vectors + row
    stop = recent // document.branchings[0] if row else 0
    return [Gists(0, stop - row, stop), Raw(recent, n_tokens)]


def _recent(pieces: Sequence[Piece], extents: Plan, n_tokens: int, vectors: int) -> list[Piece]:
    """The pieces in order, and recent text: as many last tokens as vectors are left, gists among them opened."""
    found: list[Piece] = []
    end = n_tokens
    for piece in sorted(pieces, key=lambda piece: -extents.extent(piece)[0]):
        start, stop = extents.extent(piece)
        if vectors < end - stop:  # the text behind the piece does not fit
            found += [Raw(end - vectors, end), piece]
            end, vectors = start, 0
            continue
        found.append(Raw(stop, end))
        vectors -= end - stop
        end = stop
        if isinstance(piece, Gists) and vectors + 1 >= stop - start:
            vectors += 1  # its tokens take its place
        else:
            found.append(piece)
            end = start
    found.append(Raw(max(0, end - vectors), end))
    return found[::-1]


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that touch or overlap joined."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return merged


def _size(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)
