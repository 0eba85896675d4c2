"""Collectives through shared memory: the same as over sockets, bounded in memory, and only on one machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distkg.data.generate import generate
from distkg.sharding.mapped_memory import MappedMemory, Regions
from distkg.sharding.ranks import Exchange, Ranks
from distkg.sharding.shared_memory_collectives import NodeMemory

STEPS = 30


def rows_between(step: int, source: int, target: int) -> Tensor:
    """Rows of a size and content that differ for every step and pair; sometimes none."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * source + target)
    count = int(torch.randint(0, 40, (), generator=generator)) * (50 if step == STEPS // 2 else 1)
    return torch.randn(count, 3, generator=generator)


def begin(ranks: Ranks, step: int) -> Exchange:
    send = [len(rows_between(step, ranks.rank, peer)) for peer in range(ranks.size)]
    receive = [len(rows_between(step, peer, ranks.rank)) for peer in range(ranks.size)]
    return ranks.exchange(
        lambda peer, rows: rows.copy_(rows_between(step, ranks.rank, peer)), send, receive, torch.empty(0, 3)
    )


def check(ranks: Ranks, exchange: Exchange, step: int) -> None:
    for peer, part in enumerate(exchange.wait()):
        expected = torch.empty(0, 3) if peer == ranks.rank else rows_between(step, peer, ranks.rank)
        assert torch.equal(part, expected)
    exchange.end()


def exchange_out_of_order(ranks: Ranks) -> dict[str, Any]:
    """Two exchanges under way at a time, the later one awaited first at every other step."""
    assert ranks.node is not None
    sums, sizes = [], []
    for step in range(0, STEPS, 2):
        first, second = begin(ranks, step), begin(ranks, step + 1)
        number = torch.tensor(float(step + ranks.rank))
        reducing = ranks.all_reduce(number, wait=False)
        waits = [(first, step), (second, step + 1)]
        for exchange, of_step in waits if step % 4 else reversed(waits):
            check(ranks, exchange, of_step)
        reducing.wait()
        sums.append(number.item())
        sizes.append(os.fstat(ranks.node._own.descriptor).st_size)
    return {"sums": sums, "sizes": sizes}


def test_exchanges_arrive_whole_in_any_order_of_waiting() -> None:
    for outcome in run_ranks(3, exchange_out_of_order):
        assert outcome["sums"] == [3.0 * step + 3 for step in range(0, STEPS, 2)]


def repeat_one_exchange(ranks: Ranks) -> int:
    """Size of this rank's memory after hundreds of exchanges of 40 kB, two under way at a time."""
    assert ranks.node is not None

    def begin_one() -> Exchange:
        counts = [10_000] * ranks.size
        return ranks.exchange(lambda peer, rows: rows.fill_(1), counts, counts, torch.empty(0))

    under_way = begin_one()
    for _ in range(300):
        later = begin_one()
        under_way.wait()
        under_way.end()
        under_way = later
    under_way.wait()
    return os.fstat(ranks.node._own.descriptor).st_size


def test_memory_is_used_again() -> None:
    # 45 kB with slack: two under way, one just read, whose release the next collective confirms, one to write into.
    assert max(run_ranks(2, repeat_one_exchange)) <= 4096 + 4 * 49_152


def bits_of_a_sum(ranks: Ranks) -> list[int]:
    values = torch.tensor([0.1, 0.7, 1e8]) * (ranks.rank + 1) ** 3
    ranks.all_reduce(values)
    return values.view(torch.int32).tolist()


def test_every_rank_finds_the_same_bits() -> None:
    first, *others = run_ranks(3, bits_of_a_sum)
    assert all(other == first for other in others)


def look_from_afar(ranks: Ranks) -> bool:
    """Open again, where rank 1 is offered paths that lead nowhere, as on another machine."""
    import distkg.sharding.shared_memory_collectives as module

    if ranks.rank == 1:
        module.Offer.path = lambda self, descriptor: "/proc/0/fd/0"  # type: ignore[method-assign]
    return NodeMemory.open() is None


def test_all_ranks_use_sockets_where_one_cannot_see_the_others() -> None:
    assert run_ranks(3, look_from_afar, fresh=True) == [True, True, True]


LINUX_ONLY = ["memfd_create", "posix_fallocate", "/proc", "refused", "full"]
"""What ranks may lack: two calls, the paths of descriptors, the right to call (a sandbox), room for one page."""


def take_away(feature: str, patch: pytest.MonkeyPatch) -> None:
    """Make this process one of a system without a feature."""
    import distkg.sharding.shared_memory_collectives as module

    def refuse(*arguments: object) -> None:
        raise OSError("not permitted" if feature == "refused" else "no space left")

    if feature == "/proc":
        patch.setattr(module.Offer, "path", lambda self, descriptor: "/no/such/folder")
    elif feature == "refused":
        patch.setattr(os, "memfd_create", refuse)
    elif feature == "full":
        patch.setattr(os, "posix_fallocate", refuse)
    else:
        patch.delattr(os, feature)


def losses_of_a_run(ranks: Ranks, folder: Path) -> list[float]:
    from distkg.config import parse_config
    from distkg.training.run import train_on_rank

    tree = {
        "data": {"store": str(folder.parent / "store")},
        "model": {"name": "distmult", "dim": 8},
        "objective": {"name": "one_vs_all"},
        "train": {"batch_size": 64, "epochs": 2},
    }
    train_on_rank(parse_config(tree, "test"), folder, ranks)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train_without(ranks: Ranks, folder: str) -> list[tuple[bool, list[float]]]:
    """Whether ranks share memory, and the losses of a run: with everything, then with each feature taken away."""
    outcomes = [(ranks.node is not None, losses_of_a_run(ranks, Path(folder) / "whole"))]
    for feature in LINUX_ONLY:
        with pytest.MonkeyPatch.context() as patch:
            if feature == "memfd_create" or ranks.rank == 1:  # one rank without it is enough
                take_away(feature, patch)
            without = Ranks.from_process_group(ranks.device)
            outcomes.append((without.node is not None, losses_of_a_run(without, Path(folder) / feature.strip("/"))))
    return outcomes


def test_without_what_only_linux_has_a_run_exchanges_over_sockets(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=60, relations=4, triples=400, seed=2)
    (shared, losses), *others = run_ranks(2, train_without, str(tmp_path))[0]
    assert shared
    assert len(losses) == 2
    for shared, without in others:
        assert not shared
        assert without == pytest.approx(losses, rel=1e-5)


def test_memory_of_another_process_is_not_taken_for_the_one_offered() -> None:
    memory = MappedMemory.new(b"one token")
    path = f"/proc/{os.getpid()}/fd/{memory.descriptor}"
    peer = MappedMemory.of_peer(path, b"one token")
    memory.grow(8192)
    memory.view(4096, 2, torch.empty(0, 2)).copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert peer.view(4096, 2, torch.empty(0, 2)).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(OSError, match="not the memory that was offered"):
        MappedMemory.of_peer(path, b"another  ")


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 6)), max_size=30))
def test_regions_in_use_never_overlap(requests: list[tuple[int, int]]) -> None:
    regions, in_use = Regions(MappedMemory.new(b"")), []
    for number, (size, keep) in enumerate(requests):
        region = regions.take(size, done=number)
        in_use = [(other, until) for other, until in in_use if until > number]
        for other, _ in in_use:
            assert region.offset + region.size <= other.offset or other.offset + other.size <= region.offset
        assert region.size >= size
        assert region.offset % 4096 == 0
        region.free_from = number + keep
        in_use.append((region, number + keep))
