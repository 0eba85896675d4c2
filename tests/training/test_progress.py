"""Progress of a run as its checkpoints keep it: what is refused, and how an epoch is continued in segments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distkg.config import TrainConfig
from distkg.training.learner import Division, Segment
from distkg.training.progress import Progress, ProgressError

DIVISION = Division(workers=2, steps=3, items=40, seed=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", -1),
        ("step", True),
        ("steps", "3"),
        ("best_mrr", None),
        ("best_mrr", -7.0),
        ("stopped_by", "__class__"),
    ],
)
def test_progress_that_cannot_be_is_refused(key: str, value: Any) -> None:
    """As a stranger may forge it, with a checksum that is right."""
    saved = Progress().saved(1.0, 0, DIVISION) | {key: value}
    with pytest.raises(ProgressError, match=f"the progress in a checkpoint is damaged: '{key}'"):
        Progress.restored(saved, TrainConfig(), DIVISION, 2)


def segment(first: int, last: int, steps: int = 6, **changes: Any) -> dict[str, Any]:
    division = {"workers": 2, "steps": steps, "items": 40, "seed": 0, "resident_share": 1.0}
    return {**division, "first": first, "last": last, **changes}


@pytest.mark.parametrize(
    ("segments", "problem"),
    [
        ([segment(0, 3, workers=0)], r"'segments'\.0\.'workers'"),
        ([segment(0, 3, workers=1 << 31)], r"'segments'\.0\.'workers'"),
        ([segment(0, 3, steps=0)], r"'segments'\.0\.'steps'"),
        ([segment(0, 3, resident_share=0.0)], r"'segments'\.0\.'resident_share'"),
        ([segment(0, 3) | {"first": False}], r"'segments'\.0\.'first'"),
        ([segment(0, 3, more=1)], r"'segments'\.0\.'more'"),
        ([segment(0, 3)] * 1001, "'segments'"),
        ([segment(1, 3)], "they do not follow each other"),
        ([segment(0, 0)], "they do not follow each other"),
        ([segment(0, 7)], "they do not follow each other"),
        ([segment(0, 2), segment(1, 3)], "they do not follow each other"),
        ([segment(0, 2), segment(4, 9, steps=12)], "they do not lead to the step"),
        ([segment(0, 4)], "they do not lead to the step"),
    ],
)
def test_segments_of_an_epoch_that_cannot_be_are_refused(segments: list[dict[str, Any]], problem: str) -> None:
    half = Progress(epoch=1, step=3, steps=9).saved(1.0, 0, replace(DIVISION, steps=6))
    with pytest.raises(ProgressError, match=f"the progress in a checkpoint is damaged: .*{problem}"):
        Progress.restored(half | {"segments": segments}, TrainConfig(), DIVISION, 2)


def test_an_epoch_is_continued_in_the_segments_that_a_checkpoint_records() -> None:
    two = Division(workers=2, steps=6, items=40, seed=0)
    three, many = replace(two, workers=3), replace(two, workers=3, steps=13)
    saved = Progress(epoch=1, step=3, steps=9).saved(1.0, 0, two)
    assert saved["segments"] == [segment(0, 3)]
    same = Progress.restored(saved, TrainConfig(), two, 2)
    assert (same.step, same.segments, same.segment_start) == (3, [], 0)

    other = Progress.restored(saved, TrainConfig(), three, 2)
    assert (other.step, other.segments, other.segment_start) == (3, [Segment(two, 0, 3)], 3)
    other.step = 5
    saved = other.saved(1.0, 0, three)
    assert saved["segments"] == [segment(0, 3), segment(3, 5, workers=3)]
    again = Progress.restored(saved, TrainConfig(), three, 3)
    assert (again.step, again.segments, again.segment_start) == (5, [Segment(two, 0, 3)], 3)
    back = Progress.restored(saved, TrainConfig(), two, 3)
    assert (back.segments, back.segment_start) == ([Segment(two, 0, 3), Segment(three, 3, 5)], 5)

    smaller = Progress.restored(saved, TrainConfig(), many, 3)
    assert (smaller.step, len(smaller.segments), smaller.segment_start) == (10, 2, 10)  # ⌊5 · 13 / 6⌋
    smaller.step = 11
    assert smaller.saved(1.0, 0, many)["segments"][-1] == segment(10, 11, steps=13, workers=3)
    Progress.restored(smaller.saved(1.0, 0, many), TrainConfig(), many, 3)
    smaller.end_epoch()
    assert smaller.saved(1.0, 0, many)["segments"] == []


def test_without_recorded_segments_the_workers_that_wrote_the_checkpoint_did_all_steps() -> None:
    two = Division(workers=2, steps=6, items=40, seed=0)
    saved = Progress(epoch=1, step=3, steps=9).saved(1.0, 0, two)
    del saved["segments"]
    for workers, segments, start in ((2, [], 0), (5, [Segment(replace(two, workers=5), 0, 3)], 3)):
        restored = Progress.restored(saved, TrainConfig(), two, workers)
        assert (restored.step, restored.segments, restored.segment_start) == (3, segments, start)


def test_an_objective_with_other_items_begins_its_own_order() -> None:
    two = Division(workers=2, steps=6, items=40, seed=0)
    saved = Progress(epoch=1, step=3, steps=9).saved(1.0, 0, two)
    restored = Progress.restored(saved, TrainConfig(), Division(3, 4, 30, 0), 2)
    assert (restored.step, restored.segments, restored.segment_start) == (2, [], 0)
