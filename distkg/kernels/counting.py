"""Rank counts: number of candidates that score above an answer, and equal to it, without known facts.

The kernel makes one pass over a block of scores while the block is in cache. The compiled kernel and the plain torch
form count the same integers; the latter also runs on devices without a compiled kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distkg.graph.csr import expanded_ranges, row_of_each
from distkg.kernels.jit import kernel, on_cpu
from distkg.kernels.threads import for_each_part

_FEWEST = 16  # queries of a part: with fewer, a thread costs more than it saves
_SLICE = 256  # answers per slice in the plain form, which copies a row of scores for each


@dataclass(frozen=True)
class Tally:
    """Queries with their answers, and the rank counts so far.

    Answers are in the order of their queries. Known entities of query i, ascending, are
    ``known[known_starts[i]:known_ends[i]]``; they are never counted. An answer never counts against itself.

    Attributes:
        known: int32 [k].
        known_starts: int64 [q].
        known_ends: int64 [q].
        answer_starts: int64 [q + 1]; answers of query i are ``answers[answer_starts[i]:answer_starts[i + 1]]``.
        answers: int32 [a] entities.
        thresholds: float32 [a], score of each answer, with which candidates are compared.
        greater: int64 [a], number of entities that score above the threshold.
        equal: int64 [a], number of entities that score exactly the threshold.
        answer_scores: float32 [a], score of the answer in its block; 0 until its block is counted.
        broken: int64 [q], number of non-finite scores.
    """

    known: np.ndarray
    known_starts: np.ndarray
    known_ends: np.ndarray
    answer_starts: np.ndarray
    answers: np.ndarray
    thresholds: np.ndarray
    greater: np.ndarray
    equal: np.ndarray
    answer_scores: np.ndarray
    broken: np.ndarray

    @classmethod
    def start(
        cls,
        known: np.ndarray,
        known_starts: np.ndarray,
        known_ends: np.ndarray,
        answer_starts: np.ndarray,
        answers: np.ndarray,
    ) -> Tally:
        """Create a tally with all counts and thresholds 0."""
        zeros = np.zeros(len(answers), np.int64)
        return cls(
            known=known,
            known_starts=known_starts,
            known_ends=known_ends,
            answer_starts=answer_starts,
            answers=answers,
            thresholds=np.zeros(len(answers), np.float32),
            greater=zeros,
            equal=zeros.copy(),
            answer_scores=np.zeros(len(answers), np.float32),
            broken=np.zeros(len(known_starts), np.int64),
        )


def count_block(scores: Tensor, low: int, first: int, tally: Tally) -> None:
    """Count one block into ``tally``; scores of known entities are overwritten with -inf.

    Args:
        scores: float32 [b, n] of queries ``first … first + b - 1`` and entities ``low … low + n - 1``.
        low: entity of the first column.
        first: query of the first row.
        tally: receives the counts of these queries' answers.
    """
    if not on_cpu(scores):
        reference_count_block(scores, low, first, tally)
        return
    counted = (
        tally.known,
        tally.known_starts,
        tally.known_ends,
        tally.answer_starts,
        tally.answers,
        tally.thresholds,
        tally.greater,
        tally.equal,
        tally.answer_scores,
        tally.broken,
    )
    block = scores.numpy()
    for_each_part(len(block), lambda start, end: _count(block[start:end], low, first + start, *counted), _FEWEST)


@kernel
def _count(
    scores: np.ndarray,
    low: int,
    first: int,
    known: np.ndarray,
    known_starts: np.ndarray,
    known_ends: np.ndarray,
    answer_starts: np.ndarray,
    answers: np.ndarray,
    thresholds: np.ndarray,
    greater: np.ndarray,
    equal: np.ndarray,
    answer_scores: np.ndarray,
    broken: np.ndarray,
) -> None:
    width = scores.shape[1]
    for i in range(scores.shape[0]):
        row = scores[i]
        query = first + i
        finite = 0
        for c in range(width):
            finite += abs(row[c]) < np.inf
        broken[query] += width - finite
        for a in range(answer_starts[query], answer_starts[query + 1]):
            if low <= answers[a] < low + width:
                answer_scores[a] = row[answers[a] - low]
        own = known[known_starts[query] : known_ends[query]]
        for k in range(np.searchsorted(own, low), len(own)):
            if own[k] >= low + width:
                break
            row[own[k] - low] = -np.inf
        for a in range(answer_starts[query], answer_starts[query + 1]):
            threshold = thresholds[a]
            above = 0
            same = 0
            for c in range(width):
                above += row[c] > threshold
                same += row[c] == threshold
            if low <= answers[a] < low + width and row[answers[a] - low] == threshold:
                same -= 1
            greater[a] += above
            equal[a] += same


def reference_count_block(scores: Tensor, low: int, first: int, tally: Tally) -> None:
    """Plain torch form of ``count_block``, for any device."""
    rows, width = scores.shape
    queries = slice(first, first + rows)
    tally.broken[queries] += (~torch.isfinite(scores)).sum(1).cpu().numpy()
    begin, end = int(tally.answer_starts[first]), int(tally.answer_starts[first + rows])
    query_rows = torch.from_numpy(row_of_each(tally.answer_starts[first : first + rows + 1])).to(scores.device)
    columns = torch.from_numpy(tally.answers[begin:end].astype(np.int64) - low).to(scores.device)
    inside = (columns >= 0) & (columns < width)
    columns.clamp_(0, width - 1)
    answer_scores = torch.where(inside, scores[query_rows, columns], 0.0)
    starts, ends = tally.known_starts[queries], tally.known_ends[queries]
    hide_cells(scores, known_cells(tally.known, starts, ends, low, width))
    tally.answer_scores[begin:end] += answer_scores.cpu().numpy()
    for at in range(0, end - begin, _SLICE):
        part = slice(at, min(at + _SLICE, end - begin))
        threshold = torch.from_numpy(tally.thresholds[begin:end][part]).to(scores.device)
        block = scores.index_select(0, query_rows[part])
        itself = inside[part] & (scores[query_rows[part], columns[part]] == threshold)
        tally.greater[begin:end][part] += (block > threshold[:, None]).sum(1).cpu().numpy()
        tally.equal[begin:end][part] += ((block == threshold[:, None]).sum(1) - itself.long()).cpu().numpy()


def known_cells(known: np.ndarray, starts: np.ndarray, ends: np.ndarray, low: int, width: int) -> np.ndarray:
    """Return the cells of known entities in a flattened block [b, width] of entities ``low …``: int64, ascending.

    The known entities of row i are ``known[starts[i]:ends[i]]``, ascending.
    """
    row, position = expanded_ranges(starts, ends)
    column = known[position].astype(np.int64) - low
    inside = (column >= 0) & (column < width)
    return row[inside] * width + column[inside]


def hide_cells(scores: Tensor, cells: np.ndarray) -> None:
    """Overwrite cells of a flattened block with -inf."""
    scores.view(-1).index_fill_(0, torch.from_numpy(cells).to(scores.device), -torch.inf)
