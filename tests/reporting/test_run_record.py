import json
from pathlib import Path

import pytest

from distkg.reporting.run_record import RunError, continued, metrics_by_split, reach, read_run


def test_missing_folder_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run folder .*distkg train --run"):
        read_run(tmp_path / "nowhere")


def test_a_folder_without_run_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RunError, match=r"not a run folder; give the folder named by `distkg train --run`"):
        read_run(tmp_path)


def test_result_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"metrics": ')
    with pytest.raises(RunError, match=r"result\.json is not a JSON object"):
        read_run(tmp_path)


def test_config_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(RunError, match=r"config\.yaml is not valid YAML"):
        read_run(tmp_path)


def test_config_that_has_no_sections_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("- model")
    with pytest.raises(RunError, match=r"config\.yaml is no mapping of sections"):
        read_run(tmp_path)


def test_a_torn_last_line_is_counted_and_left_out(tmp_path: Path) -> None:
    whole = json.dumps({"time": 1.0, "epoch": 1.0, "step": 5, "loss": 2.0})
    (tmp_path / "metrics.jsonl").write_text(f'{whole}\n{{"time": 2.0, "epo')
    run = read_run(tmp_path)
    assert run.damaged_lines == 1
    assert run.column("loss", "epoch") == [(1.0, 2.0)]
    assert not run.finished


def test_bytes_that_are_not_utf8_do_not_stop_the_reader(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1, "loss": 3}\n\xff\xfe\n')
    run = read_run(tmp_path)
    assert (len(run.lines), run.damaged_lines) == (1, 1)


def test_a_restart_replaces_the_steps_it_repeats_and_the_clock_goes_on() -> None:
    first = [{"time": t, "step": s, "loss": 1.0} for t, s in ((10.0, 1), (20.0, 2), (30.0, 3))]
    after = [{"time": t, "step": s, "loss": 9.0} for t, s in ((4.0, 2), (8.0, 3), (12.0, 4))]
    history = continued(first + after)
    assert [(line["step"], line["time"], line["loss"]) for line in history] == [
        (1, 10.0, 1.0),
        (2, 14.0, 9.0),
        (3, 18.0, 9.0),
        (4, 22.0, 9.0),
    ]


def test_a_clock_that_a_checkpoint_carries_on_is_left_alone() -> None:
    # The checkpoint was taken at step 2, second 20; lines up to second 40 were lost with the worker.
    lines = [{"time": t, "step": s} for t, s in ((10.0, 1), (20.0, 2), (40.0, 4), (25.0, 3), (35.0, 4))]
    assert [(line["step"], line["time"]) for line in continued(lines)] == [(1, 10), (2, 20), (3, 25), (4, 35)]


def test_two_restarts_add_up() -> None:
    lines = [{"time": t, "step": s} for t, s in ((5.0, 1), (1.0, 2), (3.0, 3), (2.0, 4))]
    assert [line["time"] for line in continued(lines)] == [5.0, 6.0, 8.0, 10.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "7", True])
def test_only_finite_numbers_are_reached(value: object) -> None:
    assert reach({"valid": {"mrr": value}}, "valid.mrr") is None


def test_reach_into_nested_objects() -> None:
    assert reach({"valid": {"mrr": 0.25}}, "valid.mrr") == 0.25
    assert reach({"valid": 3}, "valid.mrr") is None


def test_metrics_of_other_weights_have_rows_of_their_own() -> None:
    test, other = {"mrr": 0.3}, {"mrr": 0.2}
    both = {"average": {"test": test}, "raw": {"test": other, "valid": 3}}
    result = {"metrics": {"test": test}, "weights": "average", "metrics_by_weights": both}
    assert metrics_by_split(result) == {"test": test, "test, raw weights": other}
    assert metrics_by_split({"metrics": {"test": test}, "metrics_by_weights": "?"}) == {"test": test}
