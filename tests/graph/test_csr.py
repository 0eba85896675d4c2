import numpy as np

from distkg.graph.csr import Csr


def test_both_directions_are_kept_and_loops_left_out() -> None:
    edges = np.array([[0, 1], [1, 2], [3, 3], [0, 1], [2, 0]])
    graph = Csr.undirected(edges, n=5)
    assert graph.offsets.tolist() == [0, 3, 6, 8, 8, 8]
    neighbours = [sorted(graph.neighbours[a:b]) for a, b in zip(graph.offsets[:-1], graph.offsets[1:], strict=True)]
    assert neighbours == [[1, 1, 2], [0, 0, 2], [0, 1], [], []]
    assert graph.sources.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert graph.neighbours.dtype == np.int32
    assert graph.offsets.dtype == np.int64


def test_a_graph_without_edges_has_empty_rows() -> None:
    graph = Csr.undirected(np.empty((0, 2), dtype=np.int32), n=2)
    assert graph.offsets.tolist() == [0, 0, 0]
    assert len(graph.neighbours) == 0
