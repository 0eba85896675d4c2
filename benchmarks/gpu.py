"""One device: training, exact evaluation, message passing and zero-shot ranking beside plain PyTorch and rooflines.

Runs in one process, without Ray, DGL or workers, on the GPU with ``--device cuda``. Rates are of wall time: the clock
is read when the device has done all that it was asked for. The rooflines are products of large matrices and copies, in
the same minute. Plain PyTorch is the same work, as one would write it with autograd and dense tensors on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import evaluation, message_passing, one_vs_all, query_sampling, training_windows, zero_shot
from benchmarks.common import BenchmarkError, Figures, begin, finish, finished_at, graph_settings, settings_of
from benchmarks.training_windows import SCORERS, TimedTraining, sampled_config
from distkg.data.store.graph_store import Store
from distkg.embedding.steps.captured import CapturedStep
from distkg.evaluation.ranking import rank_answers
from distkg.foundation.model_files import make_model
from distkg.foundation.models import KnowledgeGraph
from distkg.sharding.ranks import Ranks

_BYTES_COPIED = 8  # per float: one read and one write


@dataclass(frozen=True)
class Workload:
    """Sizes: of the parts as in their own benchmarks, and of what is measured here alone.

    Attributes:
        training: sampled training.
        every: 1-vs-all.
        ranking: exact evaluation.
        hale: HaLE's epochs.
        messages: message passing.
        asked: test triples that are ranked without training.
        side: side of the matrices that are multiplied.
        floats: numbers that are copied.
        seconds: for each rate of the device.
    """

    training: training_windows.Workload
    every: one_vs_all.Workload
    ranking: evaluation.Workload
    hale: query_sampling.Workload
    messages: message_passing.Workload
    asked: int = 256
    side: int = 8192
    floats: int = 256 << 20
    seconds: float = 0.5

    @classmethod
    def of(cls, device: str, quick: bool) -> Workload:
        messages = message_passing.Workload.of(device, quick)
        if quick:
            parts = (
                training_windows.Workload.quick(),
                one_vs_all.Workload.quick(),
                evaluation.Workload.quick(),
                query_sampling.Workload.quick(),
            )
            return cls(*parts, messages, asked=2, side=128, floats=1 << 16, seconds=0.02)
        training = replace(training_windows.Workload(), batch_size=8192 if device == "cuda" else 1024)
        if device == "cuda":
            return cls(training, one_vs_all.Workload(), evaluation.Workload(), query_sampling.Workload(), messages)
        sizes = {"asked": 32, "side": 1024, "floats": 16 << 20}
        return cls(training, one_vs_all.Workload(), evaluation.Workload(), query_sampling.Workload(), messages, **sizes)


@dataclass(frozen=True)
class Device:
    """Rates of a device per second: float32 and bfloat16 operations, bytes copied."""

    name: str
    float32: float
    bfloat16: float
    bandwidth: float

    @classmethod
    def measured(cls, name: str, work: Workload) -> Device:
        left, right = (torch.rand(work.side, work.side, device=name) for _ in range(2))
        halves = left.bfloat16(), right.bfloat16()
        source, target = (torch.zeros(work.floats, device=name) for _ in range(2))
        flops = 2.0 * work.side**3
        return cls(
            name,
            flops * _rate(lambda: left @ right, name, work.seconds),
            flops * _rate(lambda: halves[0] @ halves[1], name, work.seconds),
            _BYTES_COPIED * work.floats * _rate(lambda: target.copy_(source), name, work.seconds),
        )


def _rate(run: Callable[[], object], device: str, seconds: float) -> float:
    """Calls per second, after one that is not counted."""
    run()
    start, count = finished_at(device), 0
    while True:
        run()
        count += 1
        now = finished_at(device)
        if now - start >= seconds:
            return count / (now - start)


class PlainTraining:
    """A step with negatives shared by chunks of queries, in plain PyTorch: dense tables, autograd, Adagrad."""

    def __init__(self, scorer: str, entities: int, relations: int, work: training_windows.Workload, device: str):
        self._scorer, self._work, self._device = scorer, work, device
        self._sizes = entities, 2 * relations
        self.entities = torch.nn.Parameter(torch.randn(entities, work.dim, device=device) / 10)
        width = work.dim // 2 if scorer == "RotatE" else work.dim
        self.relations = torch.nn.Parameter(torch.randn(2 * relations, width, device=device) / 10)
        self._optimizer = torch.optim.Adagrad([self.entities, self.relations], lr=0.1)

    def step(self) -> Tensor:
        """Train on a batch of random triples; return the loss."""
        queries, count, chunk = 2 * self._work.batch_size, self._work.negatives // 2, 256
        entities, relations = self._sizes
        drawn = [torch.randint(entities, (queries,), device=self._device) for _ in range(2)]
        relation = torch.randint(relations, (queries,), device=self._device)
        chunks = -(-queries // chunk)
        negative = torch.randint(entities, (chunks, count), device=self._device)
        query = self.query(F.embedding(drawn[0], self.entities), F.embedding(relation, self.relations))
        positive = self.scores(query[:, None], F.embedding(drawn[1], self.entities)[:, None]).flatten()
        padded = F.pad(query, (0, 0, 0, chunks * chunk - queries)).view(chunks, chunk, -1)
        scores = self.scores(padded, F.embedding(negative, self.entities)).view(chunks * chunk, count)[:queries]
        loss = (F.softplus(-positive) + F.softplus(scores).mean(1)).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        if self._scorer == "DistMult":
            return anchor * relation
        if self._scorer.startswith("TransE"):
            return anchor + relation
        real, imaginary = anchor.chunk(2, -1)
        cosine, sine = relation.chunk(2, -1) if self._scorer == "ComplEx" else (relation.cos(), relation.sin())
        return torch.cat((real * cosine - imaginary * sine, real * sine + imaginary * cosine), -1)

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        """[..., n, d], [..., k, d] -> [..., n, k]."""
        if self._scorer in ("DistMult", "ComplEx"):
            return query @ candidates.mT
        if self._scorer != "RotatE":
            return -torch.cdist(query, candidates, p=1.0 if self._scorer == "TransE L1" else 2.0)
        real, imaginary = (query[..., :, None, :] - candidates[..., None, :, :]).chunk(2, -1)
        return -(real.square() + imaginary.square() + 1e-12).sqrt().sum(-1)


def sampled(figures: Figures, address: str, device: Device, work: Workload, scorers: Sequence[str]) -> None:
    """The scorers with shared negatives."""
    store, sizes = Store.open(address), work.training
    for scorer in scorers:
        config = sampled_config(scorer, address, sizes, sizes.batch_size)
        training = TimedTraining(config, Ranks.single(device.name))
        window = training.window(sizes.steps)
        graphs = len(training.step.graphs) if isinstance(training.step, CapturedStep) else 0
        plain = PlainTraining(scorer, store.num_entities, store.num_relations, sizes, device.name)
        plain_rate = sizes.batch_size * _rate(plain.step, device.name, work.seconds)
        columns = {"triples/s": window.triples_per_second, "step ms": window.step_ms}
        flops = 6 * window.triples_per_second * sizes.negatives * sizes.dim
        shares = {"× plain PyTorch": window.triples_per_second / plain_rate}
        if scorer not in training_windows.PAIRWISE:
            shares["% float32"] = 100 * flops / device.float32
        figures.add(f"{scorer}, shared", {**columns, **shares, "CUDA graphs": graphs})
        figures.add(
            f"{scorer}, plain PyTorch", {"triples/s": plain_rate, "step ms": 1e3 * sizes.batch_size / plain_rate}
        )


def all_entities(figures: Figures, address: str, device: Device, work: Workload) -> None:
    """1-vs-all, single queries, in both precisions of products."""
    store = Store.open(address)
    for products, rate in (("float32", device.float32), ("bfloat16", device.bfloat16)):
        config = one_vs_all.all_entities_config(address, work.every, grouped=False, products=products)
        window = TimedTraining(config, Ranks.single(device.name)).window(work.every.steps)
        flops = 6 * 2 * window.triples_per_second * store.num_entities * work.every.dim
        columns = {"triples/s": window.triples_per_second, "step ms": window.step_ms}
        figures.add(f"1-vs-all, {products}", {**columns, f"% {products}": 100 * flops / rate})


def ranking(figures: Figures, address: str, device: Device, work: Workload) -> None:
    """Exact filtered ranks beside a product and a comparison that leave nothing out."""
    store, sizes = Store.open(address), work.ranking
    config = evaluation.evaluated_config(address, sizes)
    model = TimedTraining(config, Ranks.single(device.name)).model
    triples = store.triples("test")
    known = evaluation.known_answers_of(store, triples)
    rank_answers(model, triples[:64], known, batch_size=sizes.batch_size)
    start = finished_at(device.name)
    rank_answers(model, triples, known, batch_size=sizes.batch_size)
    rate = 2 * len(triples) / (finished_at(device.name) - start)
    entities = torch.rand(store.num_entities, sizes.dim, device=device.name)
    query = torch.rand(sizes.batch_size, sizes.dim, device=device.name)

    def unfiltered() -> Tensor:
        scores = query @ entities.T
        return (scores > scores[:, :1]).sum(1)

    plain = sizes.batch_size * _rate(unfiltered, device.name, work.seconds)
    flops = 2 * rate * store.num_entities * sizes.dim
    shares = {"× plain PyTorch": rate / plain, "% float32": 100 * flops / device.float32}
    figures.add("exact evaluation", {"queries/s": rate, **shares})
    figures.add("unfiltered ranks, plain PyTorch", {"queries/s": plain})


def hale(figures: Figures, address: str, device: Device, work: Workload) -> None:
    """HaLE's epochs."""
    for dim in work.hale.dims:
        sections = query_sampling.STRATEGIES["HaLE"]
        config = query_sampling.strategy_config(address, dim, work.hale.batch_size, sections)
        seconds = query_sampling.epoch_seconds(Ranks.single(device.name), config, work.hale.steps)
        figures.add(f"HaLE, dim {dim}", {"s/epoch": seconds})


def messages(figures: Figures, address: str, device: Device, work: Workload) -> None:
    """A layer of messages, beside gather, multiply and scatter."""
    for batch in work.messages.batches:
        for name in (message_passing.OURS, "gather, multiply, index_add"):
            figures.add(
                f"messages, batch {batch}, {name}", message_passing.measure(address, name, batch, work.messages)
            )


def zero_shot_ranking(figures: Figures, address: str, device: Device, work: Workload) -> None:
    """ULTRA with weights as they are before training: ranking takes as long whatever they are."""
    store = Store.open(address)
    model, graph = make_model("ultra", {}).to(device.name), KnowledgeGraph.of_store(store)
    zero_shot.rank_test(model, store, 1, graph)
    start = finished_at(device.name)
    ranks = zero_shot.rank_test(model, store, work.asked, graph)
    seconds = finished_at(device.name) - start
    figures.add("zero-shot ranking, ULTRA", {"ms/query": 1e3 * seconds / len(ranks.queries)})


def main(arguments: Sequence[str] | None = None) -> Path:
    """All parts, one after the other, in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "store", "device", repetitions=1)
    name = session.options.device
    if name == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda: torch finds no GPU here. Measure on one, or leave the option out")
    work, figures, started = Workload.of(name, session.quick), Figures(), time.perf_counter()
    for _ in session.repetitions:
        device = Device.measured(name, work)
        figures.add("products, float32", {"Gflop/s": device.float32 / 1e9})
        figures.add("products, bfloat16", {"Gflop/s": device.bfloat16 / 1e9})
        figures.add("copies", {"GB/s": device.bandwidth / 1e9})
        sampled(figures, session.store, device, work, ["DistMult"] if session.quick else list(SCORERS))
        for part in (all_entities, ranking, hale, messages, zero_shot_ranking):
            part(figures, session.store, device, work)
    settings = settings_of(work.training, graph=graph_settings(Store.open(session.store)))
    settings["minutes"] = (time.perf_counter() - started) / 60
    if name == "cuda":
        settings["gpu"] = torch.cuda.get_device_name(name)
    return finish(session, settings, figures, part="" if name == "cpu" else name)


if __name__ == "__main__":
    main()
