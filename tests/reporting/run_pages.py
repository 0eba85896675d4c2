"""Run folders written by hand, and pages read back."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

METRICS = {
    "mrr": 0.3613,
    "hits@1": 0.2661,
    "hits@3": 0.3982,
    "hits@10": 0.5532,
    "mean_rank": 171.4,
    "mrr_optimistic": 0.3614,
    "mrr_pessimistic": 0.3612,
    "queries": 40932,
}
RESULT: dict[str, Any] = {
    "metrics": {"test": METRICS, "valid": {**METRICS, "mrr": 0.3651}},
    "train": {
        "triples_per_second": 8600.2,
        "seconds": 1320.0,
        "epochs": 4,
        "steps": 200,
        "workers": 2,
        "peak_rss_mb_per_worker": [1043.0, 1012.0],
        "bytes_exchanged_per_step": 4_500_000,
    },
    "versions": {"torch": "2.13.0"},
    "config_sha256": "ab" * 32,
    "by_relation": [
        {
            "relation": "born_in",
            "mrr": 0.5,
            "hits@10": 0.75,
            "queries": 8,
            "category": "n-1",
            "mrr_tail": 0.625,
            "mrr_head": 0.375,
        },
        {"relation": "parent_of", "mrr": 0.25, "hits@10": 0.5, "queries": 90, "category": "1-n"},
    ],
    "by_category": {"1-n": {"mrr": 0.25, "queries": 90}},
    "by_side": {"tail": {"mrr": 0.45, "queries": 49}},
    "by_half_link": {"answer seen": {"mrr": 0.55, "queries": 30}},
    "graph": {
        "entities": 14541,
        "relations": 237,
        "triples": {"train": 272115},
        "degree_histogram": [[1, 900], [10, 90]],
        "partitions": [100, 300],
        "shards": [200, 200],
    },
}


class Page(HTMLParser):
    """Collects the text, the elements and the addresses of a page, and checks that tags close."""

    VOID = frozenset({"meta", "line", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def metric_lines(count: int = 20) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for i in range(1, count + 1):
        line = {"time": 30.0 * i, "epoch": i / 5, "step": 10 * i, "loss": 9 * math.exp(-i / 8)}
        line |= {"learning_rate": 0.1, "triples_per_second": 8000.0 + i, "peak_rss_mb": 900.0 + i}
        seconds = {"data": 1.0, "exchange": 2.0, "compute": 6.0, "optimizer": 1.0}
        lines.append({**line, "seconds": seconds, **({"valid": METRICS} if i % 5 == 0 else {})})
    return lines


def make_run(folder: Path, *, lines: Any = None, result: Any = None, config: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"model": {"name": "complex", "dim": 512}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines or []))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder
