"""distkg's sources inside PyKEEN: found by name, run by its pipeline, equal to the definition of its extension."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pykeen", reason="PyKEEN comes with the development dependencies")

from pykeen.pipeline import pipeline
from pykeen.sampling import negative_sampler_resolver
from pykeen.triples import TriplesFactory

from distkg.config import ConfigError, parse_config
from distkg.data.prepare import prepare
from distkg.data.store.identity import StoreMismatchError
from distkg.embedding.load_run import load_run
from distkg.interop.pykeen import SAMPLERS, SourceSampler
from distkg.negatives import SOURCES, Negatives, SourceError
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

ENTITIES, RELATIONS = 25, 3


def labelled() -> np.ndarray:
    rows = np.random.default_rng(1).integers(0, [ENTITIES, RELATIONS, ENTITIES], (60, 3))
    return np.array([[f"e{h}", f"r{r}", f"e{t}"] for h, r, t in np.unique(rows, axis=0)])


def factory() -> TriplesFactory:
    return TriplesFactory.from_labeled_triples(labelled())


def sampler(name: str, **settings: object) -> SourceSampler:
    made = negative_sampler_resolver.make(name, pos_kwargs={"mapped_triples": factory().mapped_triples, **settings})
    assert isinstance(made, SourceSampler)
    return made


def test_every_source_is_a_sampler_by_its_name() -> None:
    assert set(SAMPLERS) == set(SOURCES)
    for name in SOURCES:
        assert negative_sampler_resolver.lookup(f"distkg_{name}").source_name == name


@pytest.mark.parametrize("count", [1, 7, 10])
def test_half_of_the_negatives_replace_the_head(count: int) -> None:
    made = sampler("distkg_corrupt", num_negs_per_pos=count)
    positive = factory().mapped_triples[:50]
    negatives = torch.cat([made.sample(positive)[0] for _ in range(60)])
    assert negatives.shape == (3000, count, 3)
    same = negatives == positive.repeat(60, 1)[:, None]
    assert bool(same[..., 1].all())  # the relation stays
    assert bool((same[..., 0] | same[..., 2]).all())  # one side at most is replaced
    # Where the entity that is drawn differs from the old one, it can be seen which side it took.
    heads, tails = int((~same[..., 0]).sum()), int((~same[..., 2]).sum())
    assert heads / (heads + tails) == pytest.approx(0.5, abs=0.03)


def test_relational_pools_are_the_extensions() -> None:
    made = sampler("distkg_relational", num_negs_per_pos=40)
    triples = factory().mapped_triples
    rows = {tuple(row) for row in triples.tolist()}
    negatives, given = made.sample(triples)
    assert given is not None  # some entities have one relation only, hence an empty pool
    for (h, r, t), drawn, real in zip(triples.tolist(), negatives.tolist(), given.tolist(), strict=True):
        tails = {other for head, relation, other in rows if head == h and relation != r}
        heads = {other for other, relation, tail in rows if tail == t and relation != r}
        for (a, b, c), exists in zip(drawn, real, strict=True):
            if exists:
                assert b == r
                assert (a == h and c in tails) or (c == t and a in heads)


def test_the_filter_of_pykeen_works_with_it() -> None:
    made = sampler("distkg_corrupt", num_negs_per_pos=20, filtered=True)
    triples = factory().mapped_triples
    negatives, given = made.sample(triples)
    rows = {tuple(row) for row in triples.tolist()}
    assert given is not None
    assert not any(tuple(row) in rows for row in negatives[given].tolist())
    assert 0 < int(given.sum()) < given.numel()


def write_classes(folder: Path) -> None:
    types = [f"e{i}\tclass{i % 4}" for i in range(ENTITIES)]
    (folder / "entity_types.tsv").write_text("\n".join(types) + "\n")
    (folder / "relation_domain_range.tsv").write_text("r0\tclass1\tclass2\nr1\t-\tclass0\n")


def test_typed_reads_classes_by_label(tmp_path: Path) -> None:
    write_classes(tmp_path)
    made, triples = factory(), factory().mapped_triples
    ids = {"entity_to_id": made.entity_to_id, "relation_to_id": made.relation_to_id}
    typed = sampler("distkg_typed", num_negs_per_pos=10, classes=tmp_path, **ids)
    negatives, given = typed.sample(triples)
    label = {number: name for name, number in made.entity_to_id.items()}
    wanted = {("r0", 0): 1, ("r0", 2): 2, ("r1", 2): 0}
    relation = {number: name for name, number in made.relation_to_id.items()}
    seen = set()
    for positive, drawn, real in zip(triples.tolist(), negatives.tolist(), given.tolist(), strict=True):
        for row, exists in zip(drawn, real, strict=True):
            for side in (0, 2):
                if exists and row[side] != positive[side]:
                    kind = wanted[relation[row[1]], side]
                    assert int(label[row[side]][1:]) % 4 == kind
                    seen.add((relation[row[1]], side))
    assert seen == set(wanted)


def write_run(tmp_path: Path) -> Path:
    """A model of the factory's triples, trained a little; its ids are others."""
    graph = tmp_path / "graph"
    graph.mkdir()
    rows = ["\t".join(row) for row in labelled()]
    (graph / "train.tsv").write_text("\n".join(rows) + "\n")
    (graph / "valid.tsv").write_text(rows[0] + "\n")
    (graph / "test.tsv").write_text(rows[1] + "\n")
    prepare(str(graph), str(tmp_path / "store"))
    tree = {"data": {"store": str(tmp_path / "store")}, "model": {"name": "distmult", "dim": 8}}
    tree["train"] = {"epochs": 5, "batch_size": 32}
    train_on_rank(parse_config(tree, "test"), tmp_path / "run", Ranks.single())
    return tmp_path / "run"


def test_near_misses_are_those_of_a_run_whatever_the_ids(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    made = factory()
    ids = {"entity_to_id": made.entity_to_id, "relation_to_id": made.relation_to_id}
    chosen = sampler("distkg_near_miss", num_negs_per_pos=30, run=run, options={"neighbours": 6}, **ids)
    triples = made.mapped_triples
    negatives, _ = chosen.sample(triples)

    model, store, _ = load_run(run, Ranks.single())
    number = {store.entity_id(label): place for label, place in made.entity_to_id.items()}
    rows_of = model.entities.gather(torch.arange(ENTITIES))
    for positive, drawn in zip(triples.tolist()[:10], negatives.tolist(), strict=False):
        anchor = store.entity_id(made.entity_id_to_label[positive[0]])
        relation = store.relation_id(made.relation_id_to_label[positive[1]])
        query = model.query(rows_of[anchor][None], torch.tensor([relation]))
        best = (query @ rows_of.T).topk(6).indices[0].tolist()
        tails = {tail for _, _, tail in drawn if tail != positive[2]}
        assert tails <= {number[entity] for entity in best}


def test_vectors_of_a_run_whose_store_was_replaced_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    made = factory()
    ids = {"entity_to_id": made.entity_to_id, "relation_to_id": made.relation_to_id}
    shutil.move(tmp_path / "store", tmp_path / "moved")
    prepare(str(tmp_path / "graph"), str(tmp_path / "store"), seed=1)
    with pytest.raises(StoreMismatchError, match=r"^entities\.parquet of store .* differs from the one that run"):
        sampler("distkg_near_miss", num_negs_per_pos=4, run=run, **ids)
    sampler("distkg_near_miss", num_negs_per_pos=4, run=run, store=tmp_path / "moved", **ids)


def test_what_a_source_makes_besides_takes_the_first_places(tmp_path: Path) -> None:
    triples = factory()
    small = {"made": 3, "diffusion": {"steps": 20}}
    settings = {"run": write_run(tmp_path), "entity_to_id": triples.entity_to_id}
    settings["relation_to_id"] = triples.relation_to_id
    made = sampler("distkg_dans", num_negs_per_pos=5, options=small, **settings)
    found: list[Negatives] = []
    draw = made.source.draw
    made.source.draw = lambda *asked: found.append(draw(*asked)) or found[-1]  # type: ignore[method-assign,func-returns-value]
    negatives, given = made.sample(triples.mapped_triples)
    assert given is not None
    tails, heads = found[0].made.entities.chunk(2)  # type: ignore[union-attr]
    uniform_tails, uniform_heads = found[0].entities.chunk(2)
    for row, positive in enumerate(triples.mapped_triples.tolist()):
        for place, (head, _, tail) in enumerate(negatives[row].tolist()):
            expected_head = heads[row, place] if place < 3 else uniform_heads[row, place - 3]
            expected_tail = tails[row, place] if place < 3 else uniform_tails[row, place - 3]
            assert not given[row, place] or head == expected_head or tail == expected_tail
            assert head == positive[0] or tail == positive[2]
    vectors = sampler("distkg_dans", num_negs_per_pos=5, options={**small, "negatives": "embedding"}, **settings)
    with pytest.raises(SourceError, match=r"generates vectors.*snap"):
        vectors.sample(triples.mapped_triples)


def test_labels_need_their_ids(tmp_path: Path) -> None:
    write_classes(tmp_path)
    with pytest.raises(ConfigError, match="entity_to_id and relation_to_id of the triples factory"):
        sampler("distkg_typed", classes=tmp_path)


def test_a_pipeline_of_pykeen_learns_with_a_source_of_distkg() -> None:
    result = pipeline(
        training=factory(),
        testing=factory(),
        model="TransE",
        model_kwargs={"embedding_dim": 16},
        negative_sampler="distkg_relational",
        negative_sampler_kwargs={"num_negs_per_pos": 8, "options": {"integrate": True}},
        training_kwargs={"num_epochs": 30, "batch_size": 64, "use_tqdm": False},
        evaluation_kwargs={"use_tqdm": False},
        optimizer_kwargs={"lr": 0.05},
        random_seed=0,
        device="cpu",
    )
    assert result.losses[-1] < 0.7 * result.losses[0]
