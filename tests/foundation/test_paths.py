"""Paths that explain an answer, against all paths tried one by one and gradients by differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_facts import FACTS, graph

from distkg.foundation.model_files import make_model
from distkg.foundation.paths import edge_gradients, in_words, most_influential


def test_gradients_are_differences_of_the_score() -> None:
    torch.manual_seed(0)
    model, whole = make_model("ultra", {"width": 8, "layers": 2, "hidden": 8}).eval(), graph()
    asked = torch.tensor([0]), torch.tensor([1])
    found = edge_gradients(model, whole, 0, 1, 3)
    assert found.shape == (2, 12)

    def score(weight: torch.Tensor) -> float:
        with torch.no_grad():
            return float(model.scores(whole, model.relation_states(whole, *asked), *asked, weight)[0, 3])

    for layer in range(2):
        for edge in range(12):
            up, down = torch.ones(2, 12), torch.ones(2, 12)
            up[layer, edge] += 0.02
            down[layer, edge] -= 0.02
            assert float(found[layer, edge]) == pytest.approx((score(up) - score(down)) / 0.04, abs=5e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_paths_are_the_best_of_all(seed: int) -> None:
    edges = graph().facts
    gradients = torch.randn(3, len(edges), generator=torch.Generator().manual_seed(seed))
    found = most_influential(gradients, edges, anchor=0, answer=3, top=4)
    paths: list[tuple[list[int], list[int]]] = [([], [0])]
    best = []
    for length in range(1, 4):
        steps = [
            ([*walked, e], [*met, int(edges.dst[e])])
            for walked, met in paths
            for e in range(12)
            if int(edges.src[e]) == met[-1] and int(edges.dst[e]) not in met
        ]
        paths = steps
        for walked, met in paths:
            if met[-1] == 3:
                best.append((float(np.mean([float(gradients[i, e]) for i, e in enumerate(walked)])), length))
    expected = sorted(best, reverse=True)[:4]
    assert [path.importance for path in found] == pytest.approx([importance for importance, _ in expected], abs=1e-5)
    assert [len(path.facts) for path in found] == [length for _, length in expected]
    for path in found:
        assert set(path.facts) <= set(FACTS)


def test_a_path_in_words_follows_the_facts() -> None:
    edges = graph().facts
    gradients = torch.zeros(2, len(edges))
    for layer, (head, relation, tail) in enumerate([(0, 1, 4), (3, 1, 4)]):
        for e in range(len(edges)):
            ends = int(edges.dst[e]), int(edges.src[e])
            if int(edges.relation[e]) % 2 == relation and set(ends) == {head, tail}:
                gradients[layer, e] = 1.0
    (best,) = most_influential(gradients, edges, anchor=0, answer=3, top=1)
    labels = dict(enumerate("abcde"))
    assert in_words(best, 0, labels, {0: "likes", 1: "knows"}) == "a —knows→ e ←knows— d"
    assert best.importance == 1.0
