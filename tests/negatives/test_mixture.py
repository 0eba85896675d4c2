"""Shares of a mixture, their schedule, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distkg.config import ConfigError
from distkg.negatives import Queries, SourceError, TrainingGraph, TrainingProgress, depends_on_query, make_source
from distkg.negatives.mixture import Mixture
from distkg.registry import UnknownNameError

# Entities 0 … 9; only 0 and 1 occur in triples, so that `degree` and `corrupt` can be told from `uniform`.
GRAPH = TrainingGraph.of_triples(np.array([[0, 0, 1]]), 10, 1)


def mixture(*parts: dict[str, object]) -> Mixture:
    source = make_source("mixture", {"parts": list(parts)}, GRAPH)
    assert isinstance(source, Mixture)
    return source


def queries(count: int) -> Queries:
    return Queries(torch.zeros(count).long(), torch.zeros(count).long(), torch.ones(count).long())


def from_corrupt(source: Mixture, count: int, rounds: int = 400) -> list[int]:
    """How many negatives of each round come from `corrupt`, which gives entity 1 alone."""
    generator = torch.Generator().manual_seed(0)
    return [int((source.draw(queries(1), count, generator).entities == 1).sum()) for _ in range(rounds)]


def test_each_source_gives_its_share() -> None:
    source = mixture({"source": "corrupt", "weight": 3}, {"source": "relational"})  # the latter has empty pools: 0
    # 5 negatives at 3 : 1 are 3.75 of the first: three or four in each draw, and that on average.
    counts = from_corrupt(source, 5)
    assert set(counts) == {3, 4}
    assert np.mean(counts) == pytest.approx(3.75, abs=0.08)


def test_weights_follow_the_training() -> None:
    source = mixture({"source": "corrupt", "weight": [[0.2, 0], [0.6, 1]]}, {"source": "uniform", "weight": 1})
    shares = []
    for progress in (0.0, 0.2, 0.4, 0.6, 1.0):
        source.advance(TrainingProgress(progress=progress))
        shares.append(source.shares(progress)[0])
    assert shares == pytest.approx([0, 0, 1 / 3, 0.5, 0.5])


def test_a_source_without_a_share_is_not_asked() -> None:
    source = mixture({"source": "corrupt", "weight": [[0, 0], [1, 1]]}, {"source": "uniform", "weight": 1})
    drawn = source.draw(queries(50), 8, torch.Generator().manual_seed(1))
    assert drawn.entities.shape == (50, 8)
    assert drawn.mask is None


def test_it_looks_at_queries_where_any_part_does() -> None:
    assert not depends_on_query("mixture", {"parts": [{"source": "uniform"}, {"source": "degree"}]})
    assert depends_on_query("mixture", {"parts": [{"source": "uniform"}, {"source": "corrupt"}]})


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"negatives\.options\.parts: .*Options of mixture: parts"):
        make_source("mixture", {"parts": []}, GRAPH)
    with pytest.raises(ConfigError, match="in order of progress"):
        mixture({"source": "uniform", "weight": [[0.5, 1], [0.2, 1]]})
    with pytest.raises(ConfigError, match="must not be negative"):
        mixture({"source": "uniform", "weight": -1})
    with pytest.raises(SourceError, match="all weights of the mixture are 0 at progress 1"):
        mixture({"source": "uniform", "weight": [[0, 1], [1, 0]]})
    with pytest.raises(UnknownNameError, match="no negative source named 'unifrom'"):
        mixture({"source": "unifrom"})
