"""Replies, mistakes, deaths and hangs of an actor, told apart; Ray itself is not started here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fake_ray import FakeActor, FakeRay, ProcessEnds
from ray import exceptions as errors

from distkg.cluster.sampling import negative_pool
from distkg.cluster.sampling.actor_link import ActorLink, NoReply
from distkg.cluster.sampling.negative_pool import ActorPool
from distkg.config import PoolConfig
from distkg.kernels.scores.similarity import DOT
from distkg.negatives import DrawRequest, Queries, TrainingGraph, TrainingProgress
from distkg.negatives.kmas.relation_miner import RelationMiner
from distkg.negatives.kmas.similarity_cache import SimilarityCache
from distkg.negatives.prefetch.congestion_window import CongestionWindow
from distkg.negatives.prefetch.pool_client import RELATIONS
from distkg.negatives.prefetch.pool_events import NegativePoolError, PoolEvent
from distkg.negatives.prefetch.prefetched_source import PrefetchedSource
from distkg.negatives.prefetch.source_server import SourceServer, make_server
from distkg.sharding.ranks import Ranks

ENTITIES, STEP_SECONDS, STEPS_PER_EPOCH, DEPTH = 40, 0.1, 20, 16


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay.installed(monkeypatch)


class Echo:
    """What an actor holds that says what it is asked."""

    def draw(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value


def link_to(actor: FakeActor, hung_after: float = 10.0) -> ActorLink:
    return ActorLink(actor, 3, hung_after, {})


def ask(link: ActorLink, value: Any, method: str = "draw") -> Any:
    call = link.call(method, value)
    link.is_over(call, None)
    return link.outcome(call)


def kinds(link: ActorLink) -> list[str]:
    return [event.kind for event in link.take_events()]


def test_a_reply_is_a_reply(ray: FakeRay) -> None:
    link = link_to(ray.actor(Echo))
    assert ask(link, 7) == 7
    assert (link.ready, link.gone, link.restarts, kinds(link)) == (True, False, 0, [])


def test_a_mistake_is_an_event_and_nothing_is_restarted(ray: FakeRay) -> None:
    link = link_to(ray.actor(Echo))
    assert ask(link, PoolEvent("failed", "no luck")) is NoReply.FAILED
    assert link.take_events() == [PoolEvent("failed", "negative actor 3: no luck")]
    assert ask(link, errors.RaySystemError(ValueError("not to be read"), "trace")) is NoReply.FAILED
    (event,) = link.take_events()
    assert event.text == (
        "negative actor 3: it gave a reply to draw that cannot be deserialised: ValueError: not to be read"
    )
    assert ask(link, errors.RayTaskError("draw", "Traceback\n", KeyError("k"))) is NoReply.FAILED
    (event,) = link.take_events()
    assert event.text == "negative actor 3: it failed in draw: KeyError: 'k'"
    assert (link.ready, link.restarts) == (True, 0)


@pytest.mark.parametrize("heard_before", [False, True])
def test_a_death_is_counted_once_and_its_successor_is_greeted(ray: FakeRay, heard_before: bool) -> None:
    actor = ray.actor(Echo, seconds=0.5)
    link = link_to(actor)
    if heard_before:
        ask(link, 1)
    calls = [link.call("draw", number) for number in range(3)]
    actor.die()
    for call in calls:
        assert link.is_over(call, None)
        assert link.outcome(call) is NoReply.LOST
    assert kinds(link) == ["lost"]
    assert not link.look_after()
    ray.sleep(1.0)
    assert not link.look_after(), "it is back after 5 s"
    ray.sleep(5.0)
    assert link.look_after()
    assert (link.restarts, link.generation, kinds(link)) == (1, 1, [])
    assert ask(link, 8) == 8


def test_a_death_that_nobody_was_owed_anything_at_shows_in_the_next_reply(ray: FakeRay) -> None:
    actor = ray.actor(Echo)
    link = link_to(actor)
    ask(link, 1)
    actor.die()
    ray.sleep(10)
    assert ask(link, 2) == 2
    assert (link.restarts, link.generation, kinds(link)) == (1, 1, ["lost"])


def test_a_greeting_that_is_lost_because_ray_has_not_noticed_is_no_death(ray: FakeRay) -> None:
    actor = ray.actor(Echo)
    link = link_to(actor)
    ask(link, 1)
    for _ in range(30):
        refused = errors.ActorUnavailableError("RPC error", b"1" * 16)
        assert ask(link, refused) is NoReply.LOST
        assert link.wait_until_ready(), "the process lives"
    assert (link.restarts, link.gone) == (0, False)


def test_an_actor_that_dies_again_and_again_without_a_reply_has_failed(ray: FakeRay) -> None:
    actor = ray.actor(Echo)
    link = link_to(actor)
    for deaths in range(1, 12):
        assert not link.gone, deaths
        assert ask(link, ProcessEnds()) is NoReply.LOST
        link.wait_until_ready()
    assert link.gone
    assert kinds(link) == ["lost"] * 10 + ["failed"]
    fresh = link_to(ray.actor(Echo))
    for _ in range(30):
        assert ask(fresh, ProcessEnds()) is NoReply.LOST
        fresh.wait_until_ready()
        assert ask(fresh, 1) == 1
    assert (fresh.restarts, fresh.gone) == (30, False)


def test_an_actor_whose_node_ray_has_not_yet_noticed_to_be_lost_comes_back(ray: FakeRay) -> None:
    """Ray calls it dead then, although its own table says otherwise."""
    actor = ray.actor(Echo)
    link = link_to(actor)
    assert ask(link, 1) == 1
    assert ask(link, errors.ActorDiedError()) is NoReply.LOST
    assert (link.gone, kinds(link)) == (False, ["lost"])
    actor.die()
    assert link.wait_until_ready(60)
    assert (ask(link, 2), link.restarts, link.gone) == (2, 1, False)


def test_an_actor_that_ray_gives_up_has_failed_and_is_asked_no_more(ray: FakeRay) -> None:
    actor = ray.actor(Echo)
    link = link_to(actor)
    actor.die(for_good=True)
    for _ in range(2):
        assert ask(link, 1) is NoReply.FAILED
    assert kinds(link) == ["failed"]
    assert (link.ready, link.gone, link.wait_until_ready()) == (False, True, False)
    assert ActorLink(None, 0, 10.0, {}).take_events()[0].kind == "failed"


@pytest.mark.parametrize("heard_before", [False, True])
def test_one_that_owes_and_says_nothing_is_killed_once(ray: FakeRay, heard_before: bool) -> None:
    actor = ray.actor(Echo)
    link, other = link_to(actor), link_to(actor)
    if heard_before:
        ask(link, 1), ask(other, 1)
    actor.hung = True
    calls = [each.call("draw", 2) for each in (link, other)]
    ray.sleep(9.0)
    assert not any(each.is_over(call, 0) for each, call in zip((link, other), calls, strict=True))
    assert ray.killed == []
    ray.sleep(2.0)
    for each, call in zip((link, other), calls, strict=True):
        each.is_over(call, 0)
    assert ray.killed == [100]
    ray.sleep(20.0)
    for each, call in zip((link, other), calls, strict=True):
        assert each.is_over(call, 0)
        assert each.outcome(call) is NoReply.LOST
        assert each.wait_until_ready()
    assert ray.killed == [100]
    assert (link.hung + other.hung, link.restarts, other.restarts) == (1, 1, 1)
    assert sorted(kinds(link) + kinds(other)) == ["hung", "lost", "lost"]


def test_one_that_is_slow_but_answers_is_not_killed(ray: FakeRay) -> None:
    actor = ray.actor(Echo, seconds=6.0)
    link = link_to(actor)
    calls = [link.call("draw", number) for number in range(5)]
    for number, call in enumerate(calls):
        assert link.is_over(call, None)
        assert link.outcome(call) == number
    assert ray.killed == []


def test_one_that_waits_for_a_place_in_the_cluster_is_not_killed(ray: FakeRay) -> None:
    actor = ray.actor(Echo, restart=5000.0)
    link = link_to(actor)
    call = link.call("draw", 1)
    actor.die()
    link.is_over(call, None)
    link.outcome(call)
    for _ in range(400):
        ray.sleep(10.0)
        link.look_after()
    assert ray.killed == []
    ray.sleep(2000.0)
    assert link.look_after()


def test_the_driver_says_whom_it_waits_for(ray: FakeRay, caplog: pytest.LogCaptureFixture) -> None:
    quick, slow = ray.actor(Echo), ray.actor(Echo, seconds=150.0)
    negative_pool._wait_until_made([ActorLink(each, place, math.inf, {}) for place, each in enumerate((quick, slow))])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "still waiting for negative actor 1"
    ] * 2


def test_the_driver_raises_what_keeps_an_actor_from_being_made(ray: FakeRay) -> None:
    gone = ray.actor(Echo)
    gone.die(for_good=True)
    with pytest.raises(NegativePoolError, match="negative actor 0: it cannot be started"):
        negative_pool._wait_until_made([ActorLink(gone, 0, math.inf, {})])


# The pool: sources behind actors that die.


def graph() -> TrainingGraph:
    rows = np.random.default_rng(0).integers(0, [ENTITIES, 3, ENTITIES], (150, 3))
    return TrainingGraph.of_triples(np.unique(rows, axis=0), ENTITIES, 3)


class Hosting:
    """A ``NegativeActor`` with one source; ``publish`` and ``draw`` have its arguments."""

    def __init__(self) -> None:
        self.host: SourceServer[Any, Any] = make_server("near_miss", {"neighbours": 4}, graph(), DOT)

    def publish(self, key: str, incarnation: str, *piece: Any) -> None:
        *piece, _ = piece
        self.host.publish(*piece, incarnation)

    def draw(self, key: str, incarnation: str, requests: list[Any], graphs: Any) -> list[Any]:
        return [self.host.answer(request, incarnation) for request in requests]


class TableModel:
    """Vectors of all entities in one table; a query is its anchor's."""

    def __init__(self) -> None:
        self.table = torch.randn(ENTITIES, 6, generator=torch.Generator().manual_seed(4))
        self.ranks, self.similarity, self.entities, self.first = Ranks.single(), DOT, ENTITIES, 0

    def query(self, anchor: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
        return self.table[anchor]

    def candidates(self, entities: torch.Tensor) -> torch.Tensor:
        return self.table[entities]

    def own_candidates(self) -> torch.Tensor:
        return self.table


def queries() -> Queries:
    return Queries(*torch.from_numpy(graph().queries()[:8]).T.contiguous())


def moment(step: int) -> TrainingProgress:
    return TrainingProgress(step / STEPS_PER_EPOCH, step / 1000, step)


class Run:
    """Steps of a fake training: announced eight at a time and ``DEPTH`` ahead, as ``training.batches`` does it."""

    def __init__(self, ray: FakeRay, actors: list[FakeActor], **how: Any) -> None:
        self.ray, self.step = ray, 0
        config = PoolConfig(actors=len(actors), depth=DEPTH, timeout=0.05, max_age=10_000, hung_after=30.0, **how)
        links = [ActorLink(actor, place, config.hung_after, {}) for place, actor in enumerate(actors)]
        self.pool = ActorPool(links, "0", 0, 1, config, "group")
        self.source = PrefetchedSource(graph(), "near_miss", {"neighbours": 4}, self.pool, config)
        self.source.attach(TableModel())  # type: ignore[arg-type]

    def epoch(self) -> float:
        """Share of an epoch's queries that was delivered."""
        for _ in range(STEPS_PER_EPOCH):
            if self.step % 8 == 0:
                ahead = range(self.step, self.step + DEPTH + 8)
                self.source.prefetch([DrawRequest(moment(step), queries(), 3, step) for step in ahead])
            self.source.advance(moment(self.step))
            self.source.draw(queries(), 3, torch.Generator().manual_seed(self.step))
            self.ray.sleep(STEP_SECONDS)
            self.step += 1
        self.counts = self.source.client.take_deliveries()
        total = sum(
            getattr(self.counts, n) for n in ("delivered", "late", "old", "broken", "refused", "failed", "lost")
        )
        assert total == 8 * STEPS_PER_EPOCH
        return self.counts.delivered / total


def test_after_all_actors_died_delivery_is_what_it_was_within_two_epochs(ray: FakeRay) -> None:
    actors = [ray.actor(Hosting, seconds=0.04, restart=6.0) for _ in range(2)]
    run = Run(ray, actors)
    assert [run.epoch() for _ in range(4)][1:] == [1.0, 1.0, 1.0]
    for actor in actors:
        actor.die()
    shares = [run.epoch() for _ in range(3)]  # an epoch takes 2 s, a restart 6 s
    assert shares[-1] == 0.0
    assert run.counts.refused == 160
    run.epoch(), run.epoch()
    assert [run.epoch() for _ in range(4)] == [1.0] * 4
    assert run.source.client.restarts == 2
    assert [event.kind for event in run.source.client.log.take_warnings()] == ["lost"]


def test_actors_that_were_slow_before_they_died_are_asked_for_everything_again(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recovered() -> float:
        actor = ray.actor(Hosting, seconds=0.04, restart=6.0)
        run = Run(ray, [actor])
        run.epoch(), run.epoch()
        actor.seconds = 3.0  # for some epochs it is late with everything, and then it dies
        run.epoch(), run.epoch(), run.epoch(), run.epoch()
        actor.seconds = 0.04
        actor.die()
        for _ in range(5):
            run.epoch()
        return run.epoch()

    assert recovered() == 1.0
    monkeypatch.setattr(CongestionWindow, "reset", lambda self: None)
    assert recovered() < 0.7, "what was learned of the dead is held against their successors"


def test_what_the_dead_owed_is_lost_and_not_late(ray: FakeRay) -> None:
    actor = ray.actor(Hosting, seconds=0.5, restart=6.0)
    run = Run(ray, [actor])
    run.source.prefetch([DrawRequest(moment(step), queries(), 3, step) for step in range(4)])
    actor.die()
    ray.sleep(2.0)
    for step in range(4):
        run.source.advance(moment(step))
        run.source.draw(queries(), 3, torch.Generator())
    counts = run.source.client.take_deliveries()
    assert (counts.lost, counts.late, counts.delivered) == (32, 0, 0)


class DiesInPublication(Hosting):
    deaths = 0

    def publish(self, key: str, incarnation: str, *piece: Any) -> None:
        type(self).deaths -= 1
        if self.deaths >= 0:
            raise ProcessEnds
        super().publish(key, incarnation, *piece)


@pytest.mark.parametrize("deaths", [1, 3])
def test_in_sync_an_actor_that_dies_in_a_publication_is_replaced_and_published_to_again(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    monkeypatch.setattr(DiesInPublication, "deaths", deaths)
    actor = ray.actor(DiesInPublication)
    run = Run(ray, [actor], sync=True)
    assert run.epoch() == 1.0
    assert actor.restarts == deaths
    assert actor.calls.count("publish") == deaths + 2, "20 steps publish twice"


def test_what_a_publication_raises_is_read(ray: FakeRay) -> None:
    class Refuses(Hosting):
        def publish(self, key: str, incarnation: str, *piece: Any) -> Any:
            return PoolEvent("failed", "no room for vectors")

    run = Run(ray, [ray.actor(Refuses)])
    with pytest.raises(NegativePoolError, match="negative actor 0: no room for vectors"):
        run.epoch()
    run = Run(ray, [ray.actor(Refuses)], fallback="uniform")
    assert run.epoch() == 0.0
    assert [event.text for event in run.source.client.log.take_warnings()] == ["negative actor 0: no room for vectors"]


def test_replies_that_do_not_match_their_requests_are_broken(ray: FakeRay) -> None:
    class Forgets(Hosting):
        def draw(self, *arguments: Any) -> list[Any]:
            return super().draw(*arguments)[1:]

    with pytest.raises(NegativePoolError, match=r"it did not reply to .* requests one by one"):
        Run(ray, [ray.actor(Forgets)]).epoch()
    run = Run(ray, [ray.actor(Forgets)], on_error="fallback")
    assert run.epoch() == 0.0
    assert run.counts.broken > 0


# Tables of relations, by the same pool.


class Mining(Hosting):
    """A ``NegativeActor`` that compares relations."""

    def __init__(self) -> None:
        self.host = SourceServer(RelationMiner.of_vectors("kmas", {}, graph()))


def cache_of(actor: FakeActor, **how: Any) -> SimilarityCache:
    config = PoolConfig(actors=1, max_age=10_000, hung_after=10.0, **how)
    pool = ActorPool([link_to(actor)], "0", 0, 1, config, "group")
    return SimilarityCache(pool, config, 3, 1000, lambda: {RELATIONS: np.eye(3, dtype=np.float32)})


def version_at(cache: SimilarityCache, step: int) -> int | None:
    """Of the weights of the table that is used at a step."""
    cache.client.take_deliveries()
    return None if cache.latest(step, 1) is None else step - cache.client.deliveries.ages[0]


def test_an_actor_that_is_lost_with_its_table_is_asked_again(ray: FakeRay) -> None:
    actor = ray.actor(Mining, seconds=0.5)
    cache = cache_of(actor)
    cache.refresh(7)
    actor.die()
    for step in range(8, 100):
        cache.refresh(step)
        ray.sleep(0.2)
    version = version_at(cache, 100)
    assert version is not None
    assert version > 30, "of the step at which its successor was ready, not of the one that was lost"
    assert actor.calls.count("draw") == 2
    assert (cache.client.restarts, [event.kind for event in cache.client.log.take_warnings()]) == (1, ["lost"])


def test_in_sync_an_actor_that_is_lost_with_its_table_is_asked_again_with_the_same_weights(ray: FakeRay) -> None:
    class Dies(Mining):
        deaths = 0

        def draw(self, *arguments: Any) -> list[Any]:
            type(self).deaths += 1
            if self.deaths <= 2:
                raise ProcessEnds
            return super().draw(*arguments)

    cache = cache_of(ray.actor(Dies), sync=True)
    cache.refresh(7)
    assert version_at(cache, 7) == 7
    assert cache.client.restarts == 2


@pytest.mark.parametrize("sync", [False, True])
def test_a_death_that_no_table_was_owed_at_is_made_good(ray: FakeRay, sync: bool) -> None:
    actor = ray.actor(Mining)
    cache = cache_of(actor, sync=sync)
    cache.refresh(0)
    ray.sleep(1.0)
    cache.refresh(1)
    assert version_at(cache, 1) == 0
    actor.die()
    ray.sleep(10.0)
    for step in range(1000, 1003 if sync else 1010):
        cache.refresh(step)
        ray.sleep(0.2)
    version = version_at(cache, 1010)
    assert version is not None
    assert version >= 1000
    assert not sync or version == 1000
    assert cache.client.restarts == 1


def test_a_comparison_that_hangs_is_killed(ray: FakeRay) -> None:
    actor = ray.actor(Mining)
    cache = cache_of(actor, sync=True)
    actor.hung = True
    cache.refresh(7)
    assert version_at(cache, 7) == 7, "by its successor"
    assert (cache.client.hung, cache.client.restarts) == (1, 1)


def test_a_comparison_that_raises_is_an_event_and_is_not_waited_for(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlucky(self: RelationMiner, request: Any) -> Any:
        raise KeyError("no luck")

    monkeypatch.setattr(RelationMiner, "reply", unlucky)
    with pytest.raises(
        NegativePoolError, match="negative actor 3: comparing relations for step 7: KeyError: 'no luck'"
    ):
        cache_of(ray.actor(Mining), sync=True).refresh(7)
    cache = cache_of(ray.actor(Mining), sync=True, on_error="fallback")
    cache.refresh(7)
    assert cache.latest(7, 5) is None
    assert cache.client.take_deliveries().failed == 5


def test_an_actor_that_is_gone_is_not_waited_for(ray: FakeRay) -> None:
    gone = ray.actor(Mining)
    cache = cache_of(gone, sync=True, on_error="fallback")
    gone.die(for_good=True)
    cache.refresh(7)
    cache.refresh(8)
    assert cache.latest(8, 5) is None
    assert cache.client.take_deliveries().failed == 5
    assert gone.calls.count("draw") <= 1


def test_in_sync_several_actors_compare_at_the_same_time(ray: FakeRay) -> None:
    caches = [cache_of(ray.actor(Mining, seconds=1.0), sync=True) for _ in range(3)]
    for cache in caches:
        cache.request(7)
    for cache in caches:
        cache.refresh(7)
        assert version_at(cache, 7) == 7
    assert ray.now < 2.5, "each takes over the weights in one second and compares in another"


def test_keys_are_asked_where_they_are_hosted(ray: FakeRay) -> None:
    actors = [ray.actor(Mining) for _ in range(2)]
    config = PoolConfig(actors=2, max_age=100, sync=True)
    links = [link_to(actor) for actor in actors]
    pool = ActorPool(links, "b", 0, 1, config, "group", places=range(1, 2))
    cache = SimilarityCache(pool, config, 3, 1000, lambda: {RELATIONS: np.eye(3, dtype=np.float32)})
    cache.refresh(0)
    assert [actor.calls for actor in actors] == [[], ["publish", "draw"]]
