"""Exact filtered ranks of answers among all entities of a sharded model.

Every rank scores all queries against its own rows, block by block, and counts while the block is in cache; two integers
per answer are summed over ranks at the end. No array of size queries × entities is kept, so memory does not grow with
the graph.

Ties are exact: an answer is compared at the score that it has in its own block. That score is needed before the block
is reached, so it is first computed separately, then checked in the block. A batch whose scores were rounded differently
there is counted again at the block's scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distkg.data.store.known_answers import KnownAnswers
from distkg.embedding.model import Model
from distkg.evaluation.score_blocks import Blocks, evaluating, query_vectors, refuse_broken
from distkg.graph.csr import row_of_each
from distkg.graph.directions import both_directions
from distkg.kernels.counting import Tally, count_block
from distkg.sharding.ranks import Ranks


@dataclass(frozen=True)
class Ranking:
    """Ranks of answers; the anchor → tail queries of all triples first, then their tail → head queries.

    Attributes:
        queries: int32 [q, 2], anchor and relation in [0, 2R).
        answers: int32 [q].
        greater: int64 [q], number of entities that score above the answer, known answers excluded.
        equal: int64 [q], number of other entities with exactly its score, known answers excluded.
    """

    queries: np.ndarray
    answers: np.ndarray
    greater: np.ndarray
    equal: np.ndarray

    @property
    def optimistic(self) -> np.ndarray:
        """Rank if every tie is won: float64 [q], from 1."""
        return 1.0 + self.greater

    @property
    def pessimistic(self) -> np.ndarray:
        """Rank if every tie is lost: float64 [q], from 1."""
        return 1.0 + self.greater + self.equal

    @property
    def realistic(self) -> np.ndarray:
        """Mean of both, the expected rank under random order of ties: float64 [q], from 1."""
        return (self.optimistic + self.pessimistic) / 2


def never() -> bool:
    """Return False; default of ``hurries``."""
    return False


def both_queries(triples: np.ndarray, num_relations: int) -> tuple[np.ndarray, np.ndarray]:
    """Return triples [n, 3] as queries, int32 [2n, 2], (h, r) then (t, r + R), and their answers, int32 [2n]."""
    anchors, relations, answers = both_directions(*triples.astype(np.int32, copy=False).T, num_relations=num_relations)
    return np.stack([anchors, relations], 1), answers


def rank_answers(
    model: Model,
    triples: np.ndarray,
    known: KnownAnswers,
    *,
    batch_size: int = 256,
    memory_mb: int = 256,
    hurries: Callable[[], bool] = never,
) -> Ranking:
    """Rank tails and heads of triples among all entities, filtered by ``known``. Collective.

    Args:
        model: set to evaluation mode during ranking.
        triples: int [n, 3]; the same on all ranks.
        known: known answers of any split, which are excluded from the competitors; queries that it lacks have none.
        batch_size: queries scored together.
        memory_mb: MiB per rank for query vectors and a block of scores; batches shrink to fit.
        hurries: called before each block; once it returns True, no more scores are computed and the result is invalid.

    Returns:
        The full result, on every rank. Equal for any number of ranks up to the rounding of scores: entities with the
        same vector tie within a rank, and across ranks wherever the product rounds both alike.

    Raises:
        ScoreError: a score is NaN or infinite; raised on all ranks.
    """
    queries, answers = both_queries(triples, model.num_relations)
    unique, order, starts = _group(queries)
    tally = _start_tally(unique, answers[order], starts, known)
    blocks = Blocks(model, batch_size, memory_mb << 20)
    with evaluating(model):
        for low in range(0, len(unique), blocks.round_size):
            _rank_round(blocks, unique[low : low + blocks.round_size], low, tally, hurries)
    greater, equal = np.empty_like(tally.greater), np.empty_like(tally.equal)
    greater[order], equal[order] = tally.greater, tally.equal
    return Ranking(queries, answers, greater, equal)


Score = Callable[[np.ndarray], Tensor]
"""Function from queries int [b, 2], (anchor, relation), to scores of all entities, float32 [b, N]."""


def rank_by_scores(
    score: Score,
    triples: np.ndarray,
    known: KnownAnswers,
    num_relations: int,
    *,
    batch_size: int = 64,
    ranks: Ranks | None = None,
    hurries: Callable[[], bool] = never,
) -> Ranking:
    """Rank as ``rank_answers`` with a function that scores all entities at once; queries of one relation are batched
    together.

    ``ranks`` share the queries, batch by batch in turn; collective among them, and every rank gets the result.

    Raises:
        ScoreError: a score is NaN or infinite.
    """
    queries, answers = both_queries(triples, num_relations)
    unique, order, starts = _group(queries[:, ::-1])
    unique = unique[:, ::-1]
    tally = _start_tally(unique, answers[order], starts, known)
    first, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
    for low in range(first * batch_size, len(unique), size * batch_size):
        if hurries():
            break
        _count_scores(score(unique[low : low + batch_size]), low, tally)
    if ranks is not None:
        _share(ranks, tally.greater, tally.equal, tally.broken)
    refuse_broken(unique, tally.broken, num_relations)
    greater, equal = np.empty_like(tally.greater), np.empty_like(tally.equal)
    greater[order], equal[order] = tally.greater, tally.equal
    return Ranking(queries, answers, greater, equal)


def _count_scores(scores: Tensor, low: int, tally: Tally) -> None:
    """Rank the answers of queries from ``low`` on by their scores float32 [b, N]."""
    inside = _answers_of(low, len(scores), tally)
    row = row_of_each(tally.answer_starts[low : low + len(scores) + 1])
    tally.thresholds[inside] = scores[torch.from_numpy(row), torch.from_numpy(tally.answers[inside]).long()].cpu()
    count_block(scores, 0, low, tally)


def _group(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct queries [u, 2], the order [q] that sorts queries by them, and the start of each in it [u +
    1]."""
    width = int(queries[:, 1].max(initial=0)) + 1
    keys = queries[:, 0].astype(np.int64) * width + queries[:, 1]
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    return queries[order[starts]], order, np.append(starts, len(keys))


def _start_tally(unique: np.ndarray, answers: np.ndarray, starts: np.ndarray, known: KnownAnswers) -> Tally:
    known_starts, known_ends = known.rows(unique[:, 0], unique[:, 1])
    return Tally.start(known.answers, known_starts, known_ends, starts, answers)


def _rank_round(blocks: Blocks, queries: np.ndarray, first: int, tally: Tally, hurries: Callable[[], bool]) -> None:
    """Rank queries from ``first`` on and write the counts of all ranks into the tally."""
    ranks = blocks.model.ranks
    vectors = query_vectors(blocks.model, queries, blocks.batch_size)
    batches = [(low, vectors[low : low + blocks.batch_size]) for low in range(0, len(vectors), blocks.batch_size)]
    part = _part(tally, first, first + len(queries))
    for low, batch in batches:
        if not hurries():
            _score_answers(blocks, low, batch, part)
    _share(ranks, part.thresholds)
    _count(blocks, batches, part, hurries)
    _share(ranks, part.broken, part.answer_scores)
    refuse_broken(queries, part.broken, blocks.model.num_relations)
    again = [(low, batch) for low, batch in batches if _rounded_otherwise(low, len(batch), part)]
    for low, batch in again:
        inside = _answers_of(low, len(batch), part)
        part.thresholds[inside] = part.answer_scores[inside]
        part.greater[inside], part.equal[inside] = 0, 0
    _count(blocks, again, part, hurries)
    _share(ranks, part.greater, part.equal)


def _part(tally: Tally, low: int, high: int) -> Tally:
    """Return the tally of queries ``low … high - 1``, as views into the whole tally."""
    begin, end = tally.answer_starts[low], tally.answer_starts[high]
    return replace(
        tally,
        known_starts=tally.known_starts[low:high],
        known_ends=tally.known_ends[low:high],
        answer_starts=tally.answer_starts[low : high + 1] - begin,
        broken=tally.broken[low:high],
        **{
            name: getattr(tally, name)[begin:end]
            for name in ("answers", "thresholds", "greater", "equal", "answer_scores")
        },
    )


def _answers_of(low: int, count: int, part: Tally) -> slice:
    return slice(int(part.answer_starts[low]), int(part.answer_starts[low + count]))


def _score_answers(blocks: Blocks, low: int, batch: Tensor, part: Tally) -> None:
    """Write the scores of a batch's answers that this rank owns into the thresholds."""
    inside = _answers_of(low, len(batch), part)
    query_of_answer = row_of_each(part.answer_starts[low : low + len(batch) + 1])
    mine, candidates = blocks.of_answers(part.answers[inside])
    similarity = blocks.model.scorer.similarity
    for at in range(0, len(mine), blocks.rows):
        chunk = mine[at : at + blocks.rows]
        scores = similarity.scores(batch, candidates[at : at + blocks.rows])
        own = scores[torch.from_numpy(query_of_answer[chunk]), torch.arange(len(chunk))]
        part.thresholds[inside][chunk] = own.cpu().numpy()


def _count(blocks: Blocks, batches: list[tuple[int, Tensor]], part: Tally, hurries: Callable[[], bool]) -> None:
    similarity = blocks.model.scorer.similarity
    if not batches:
        return
    for low, candidates in blocks.candidates():
        if hurries():
            break
        for first, batch in batches:
            count_block(similarity.scores(batch, candidates), low, first, part)


def _share(ranks: Ranks, *arrays: np.ndarray) -> None:
    """Sum arrays over ranks, in place."""
    for array in arrays:
        ranks.sum_array(array)


def _rounded_otherwise(low: int, count: int, part: Tally) -> bool:
    inside = _answers_of(low, count, part)
    return not np.array_equal(part.thresholds[inside], part.answer_scores[inside])
