"""The Pareto front of MRR against a cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distkg.search.front import largest_cost, objective_values, pareto_front
from distkg.search.trials import Trial


def trial(number: int, mrr: float | None, seconds: float, state: str = "finished", peak: float | None = None) -> Trial:
    return Trial(number, {}, state, mrr, 1, seconds, peak_mb=peak)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=14))
def test_the_front_has_every_trial_that_no_other_dominates(points: list[tuple[int, int]]) -> None:
    trials = [trial(number, mrr / 5, seconds) for number, (mrr, seconds) in enumerate(points, 1)]

    def dominated(own: Trial) -> bool:
        return any(
            other.value >= own.value
            and other.seconds <= own.seconds
            and (other.value, other.seconds) != (own.value, own.seconds)
            for other in trials
        )

    front = pareto_front(trials, "seconds")
    assert {each.number for each in front} == {each.number for each in trials if not dominated(each)}
    assert [each.seconds for each in front] == sorted(each.seconds for each in front)
    assert [each.value for each in front] == sorted(each.value for each in front)


def test_only_finished_trials_with_a_cost_are_on_the_front() -> None:
    trials = [
        trial(1, 0.5, 10, peak=100),
        trial(2, 0.4, 5, "pruned", peak=50),
        trial(3, None, 1, "failed", peak=10),
        trial(4, 0.6, 20),
        trial(5, 0.3, 30, peak=90),
    ]
    assert [each.number for each in pareto_front(trials, "seconds")] == [1, 4]
    assert [each.number for each in pareto_front(trials, "memory")] == [5, 1]
    assert pareto_front([], "memory") == []


def test_a_failed_trial_counts_as_the_most_expensive_one() -> None:
    trials = [trial(1, 0.5, 10), trial(2, 0.75, 40), trial(3, None, 0.5, "failed")]
    assert [objective_values(each, trials, "seconds") for each in trials] == [(0.5, 10), (0.75, 40), (0.0, 40)]
    assert objective_values(trials[0], trials, "memory") == (0.0, 0.0)  # nothing was measured
    assert largest_cost([], "seconds") == 0
