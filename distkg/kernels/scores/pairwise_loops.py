"""Loops over queries and rows for any distance of ``distances.py``, inlined into the kernels of ``pairwise.py``.

The functions of a distance come first: how to load, add and store the parts of a query and of a row, then the term or
the slopes. All arrays are float32 and contiguous, ``index`` is int64, and ``width`` is that of a part.
"""

from __future__ import annotations

import numpy as np

from distkg.kernels.jit import part_of_kernel
from distkg.kernels.vectors.prefetch import AHEAD, prefetch_row
from distkg.kernels.vectors.simd import LANES, load_rest, load_whole, spread, store_rest, store_whole, total

# fmt: off
_zero = np.float32(0)
_ROWS = 8  # rows that stay in the L1 cache, with their gradients, while all queries are compared with them


@part_of_kernel
def _score(load_query, load_row, term, load, query, i, rows, row, j, left, width):  # type: ignore[no-untyped-def]
    return term(load_query(load, query, i, j, left, width), load_row(load, rows, row, j, left, width))


@part_of_kernel
def _score_pair(load_query, load_row, term, query, i, rows, row, width):  # type: ignore[no-untyped-def]
    """Sum the terms of query i and a row."""
    score, whole = spread(_zero), width // LANES * LANES
    for j in range(0, whole, LANES):
        score = score + _score(load_query, load_row, term, load_whole, query, i, rows, row, j, 0, width)
    if whole < width:
        left = width - whole
        score = score + _score(load_query, load_row, term, load_rest, query, i, rows, row, whole, left, width)
    return total(score)


@part_of_kernel
def _add_gradients(  # type: ignore[no-untyped-def]
    load_query, load_row, add_query, add_row, store_query, store_row, slopes, load, store, g, query, i, rows, row, j,
    left, width, grad_query, grad_rows,
):
    q, c = load_query(load, query, i, j, left, width), load_row(load, rows, row, j, left, width)
    factor, to_query, to_row = slopes(g, q, c)
    sum_query = add_query(factor, to_query, load_query(load, grad_query, i, j, left, width))
    store_query(store, grad_query, i, j, left, width, sum_query)
    sum_row = add_row(factor, to_row, load_row(load, grad_rows, row, j, left, width))
    store_row(store, grad_rows, row, j, left, width, sum_row)


@part_of_kernel
def _add_pair_gradients(  # type: ignore[no-untyped-def]
    load_query, load_row, add_query, add_row, store_query, store_row, slopes, g, query, i, rows, row, width,
    grad_query, grad_rows,
):
    whole = width // LANES * LANES
    for j in range(0, whole, LANES):
        _add_gradients(
            load_query, load_row, add_query, add_row, store_query, store_row, slopes, load_whole, store_whole, g,
            query, i, rows, row, j, 0, width, grad_query, grad_rows,
        )
    if whole < width:
        _add_gradients(
            load_query, load_row, add_query, add_row, store_query, store_row, slopes, load_rest, store_rest, g, query,
            i, rows, row, whole, width - whole, width, grad_query, grad_rows,
        )


@part_of_kernel
def score_indexed(load_query, load_row, term, scale, query, rows, width, index, out):  # type: ignore[no-untyped-def]
    for i in range(index.shape[0]):
        if i + AHEAD < index.shape[0] and index.shape[1] > 0:  # the first row of a query: most have one, their answer
            prefetch_row(rows, index[i + AHEAD, 0])
        for k in range(index.shape[1]):
            out[i, k] = scale * _score_pair(load_query, load_row, term, query, i, rows, index[i, k], width)


@part_of_kernel
def add_indexed_gradients(  # type: ignore[no-untyped-def]
    load_query, load_row, add_query, add_row, store_query, store_row, slopes, scale, grad, query, rows, width, index,
    grad_query, grad_rows,
):
    for i in range(index.shape[0]):
        if i + AHEAD < index.shape[0] and index.shape[1] > 0:
            prefetch_row(rows, index[i + AHEAD, 0])
            prefetch_row(grad_rows, index[i + AHEAD, 0])
        for k in range(index.shape[1]):
            _add_pair_gradients(
                load_query, load_row, add_query, add_row, store_query, store_row, slopes, spread(scale * grad[i, k]),
                query, i, rows, index[i, k], width, grad_query, grad_rows,
            )


@part_of_kernel
def score_ordered(load_query, load_row, term, scale, query, rows, width, starts, queries, out):  # type: ignore[no-untyped-def]
    for row in range(starts.shape[0] - 1):
        for entry in range(starts[row], starts[row + 1]):
            i = queries[entry]
            out[entry] = scale * _score_pair(load_query, load_row, term, query, i, rows, row, width)


@part_of_kernel
def add_ordered_gradients(  # type: ignore[no-untyped-def]
    load_query, load_row, add_query, add_row, store_query, store_row, slopes, scale, grad, query, rows, width, starts,
    queries, grad_query, grad_rows,
):
    for row in range(starts.shape[0] - 1):
        for entry in range(starts[row], starts[row + 1]):
            _add_pair_gradients(
                load_query, load_row, add_query, add_row, store_query, store_row, slopes, spread(scale * grad[entry]),
                query, queries[entry], rows, row, width, grad_query, grad_rows,
            )


@part_of_kernel
def _score_tile(load_query, load_row, term, load, query, i, following, rows, k, beside, j, left, width):  # type: ignore[no-untyped-def]
    q0, q1 = load_query(load, query, i, j, left, width), load_query(load, query, following, j, left, width)
    c0, c1 = load_row(load, rows, k, j, left, width), load_row(load, rows, beside, j, left, width)
    return term(q0, c0), term(q0, c1), term(q1, c0), term(q1, c1)


@part_of_kernel
def score_block(load_query, load_row, term, scale, query, rows, width, out):  # type: ignore[no-untyped-def]
    last, whole = query.shape[0] - 1, width // LANES * LANES
    for low in range(0, rows.shape[0], _ROWS):
        high = min(low + _ROWS, rows.shape[0])
        for i in range(0, last + 1, 2):
            following = min(i + 1, last)
            for k in range(low, high, 2):
                beside = min(k + 1, high - 1)
                s00, s01, s10, s11 = spread(_zero), spread(_zero), spread(_zero), spread(_zero)
                for j in range(0, whole, LANES):
                    t00, t01, t10, t11 = _score_tile(
                        load_query, load_row, term, load_whole, query, i, following, rows, k, beside, j, 0, width,
                    )
                    s00, s01, s10, s11 = s00 + t00, s01 + t01, s10 + t10, s11 + t11
                if whole < width:
                    left = width - whole
                    t00, t01, t10, t11 = _score_tile(
                        load_query, load_row, term, load_rest, query, i, following, rows, k, beside, whole, left,
                        width,
                    )
                    s00, s01, s10, s11 = s00 + t00, s01 + t01, s10 + t10, s11 + t11
                out[following, beside], out[following, k] = scale * total(s11), scale * total(s10)
                out[i, beside], out[i, k] = scale * total(s01), scale * total(s00)


@part_of_kernel
def _add_tile_gradients(  # type: ignore[no-untyped-def]
    load_query, load_row, add_query, add_row, store_query, store_row, slopes, load, store, w00, w01, w10, w11, query,
    i, following, rows, k, beside, j, left, width, grad_query, grad_rows,
):
    q0, c0 = load_query(load, query, i, j, left, width), load_row(load, rows, k, j, left, width)
    factor, to_query, to_row = slopes(w00, q0, c0)
    sum_q = add_query(factor, to_query, load_query(load, grad_query, i, j, left, width))
    sum_c0 = add_row(factor, to_row, load_row(load, grad_rows, k, j, left, width))
    c1 = load_row(load, rows, beside, j, left, width)
    factor, to_query, to_row = slopes(w01, q0, c1)
    store_query(store, grad_query, i, j, left, width, add_query(factor, to_query, sum_q))
    sum_c1 = add_row(factor, to_row, load_row(load, grad_rows, beside, j, left, width))
    q1 = load_query(load, query, following, j, left, width)
    factor, to_query, to_row = slopes(w11, q1, c1)
    sum_q = add_query(factor, to_query, load_query(load, grad_query, following, j, left, width))
    store_row(store, grad_rows, beside, j, left, width, add_row(factor, to_row, sum_c1))
    factor, to_query, to_row = slopes(w10, q1, c0)
    store_query(store, grad_query, following, j, left, width, add_query(factor, to_query, sum_q))
    # Row k is stored last: if ``beside`` stands in for a row beyond the last, it is the same row.
    store_row(store, grad_rows, k, j, left, width, add_row(factor, to_row, sum_c0))


@part_of_kernel
def add_block_gradients(  # type: ignore[no-untyped-def]
    load_query, load_row, add_query, add_row, store_query, store_row, slopes, scale, grad, query, rows, width,
    grad_query, grad_rows,
):
    last, whole = query.shape[0] - 1, width // LANES * LANES
    for low in range(0, rows.shape[0], _ROWS):
        high = min(low + _ROWS, rows.shape[0])
        for i in range(0, last + 1, 2):
            following = min(i + 1, last)
            for k in range(low, high, 2):
                beside = min(k + 1, high - 1)
                g00, g01, g10, g11 = grad[i, k], grad[i, beside], grad[following, k], grad[following, beside]
                # A query or row that stands in for one beyond the last has no gradient.
                g01, g11 = (_zero, _zero) if beside == k else (g01, g11)
                g10, g11 = (_zero, _zero) if following == i else (g10, g11)
                w00, w01, w10, w11 = spread(scale * g00), spread(scale * g01), spread(scale * g10), spread(scale * g11)
                for j in range(0, whole, LANES):
                    _add_tile_gradients(
                        load_query, load_row, add_query, add_row, store_query, store_row, slopes, load_whole,
                        store_whole, w00, w01, w10, w11, query, i, following, rows, k, beside, j, 0, width,
                        grad_query, grad_rows,
                    )
                if whole < width:
                    _add_tile_gradients(
                        load_query, load_row, add_query, add_row, store_query, store_row, slopes, load_rest,
                        store_rest, w00, w01, w10, w11, query, i, following, rows, k, beside, whole, width - whole,
                        width, grad_query, grad_rows,
                    )
