import io

from rich.console import Console

from distkg.reporting.stages import show_stages


def test_the_latest_stage_is_shown_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with show_stages(console) as progress:
        progress("reading train", 1_234_567)
    assert isinstance(console.file, io.StringIO)
    assert "reading train: 1,234,567 triples" in console.file.getvalue()


def test_a_log_is_not_filled_with_progress() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with show_stages(console) as progress:
        progress("reading train", 10)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().strip() == ""
