"""Difficulty and diffusion: what they learn, and how hard what they make is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distkg.negatives.dans.difficulty import Difficulty
from distkg.negatives.dans.generator import DenoiserConditions, Generator, GeneratorOptions

WIDTH, ENTITIES, KINDS = 8, 60, 3


def entity_vectors() -> Tensor:
    """Three well separated kinds of entities."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(KINDS, WIDTH, generator=generator)
    return centres.repeat_interleave(ENTITIES // KINDS, 0) + 0.3 * torch.randn(ENTITIES, WIDTH, generator=generator)


def conditions(vectors: Tensor, answer: Tensor) -> DenoiserConditions:
    kind = answer // (ENTITIES // KINDS)
    centres = vectors.view(KINDS, -1, WIDTH).mean(1)
    return DenoiserConditions(answer, vectors[answer], centres[kind], vectors[answer], centres[kind])


def trained(rounds: int = 300, **options: object) -> tuple[Generator, Tensor, list[float]]:
    torch.manual_seed(0)
    vectors, generator = entity_vectors(), torch.Generator().manual_seed(1)
    model = Generator(GeneratorOptions.model_validate(options), torch.zeros(ENTITIES, 6), WIDTH, WIDTH)
    model.scale_to(vectors)
    lost = []
    for _ in range(rounds):
        answer = torch.randint(ENTITIES, (128,), generator=generator)
        lost.append(model.learn(conditions(vectors, answer), torch.ones(128), generator)["denoising"])
    return model, vectors, lost


def test_difficulty_is_the_rank_of_an_entity_s_loss() -> None:
    difficulty = Difficulty(torch.zeros(5, 6), 2)
    difficulty.look(torch.tensor([0, 1, 2, 2]), torch.tensor([1.0, 3.0, 2.0, 2.0]))
    assert difficulty.target(torch.tensor([0, 2, 1])).tolist() == [0.0, 0.5, 1.0]
    difficulty.look(torch.tensor([0]), torch.tensor([21.0]))  # 0.9 · 1 + 0.1 · 21 = 3
    assert difficulty.seen[0] == pytest.approx(3.0)
    assert difficulty.seen[3:].isnan().all()


def test_difficulty_is_learned_from_structure() -> None:
    torch.manual_seed(0)
    structure = torch.linspace(-1, 1, 40)[:, None].expand(40, 6).contiguous()
    difficulty, entities, vectors = Difficulty(structure, 2), torch.arange(40), torch.ones(40, 2)
    difficulty.look(entities, structure[:, 0].exp())
    optimizer = torch.optim.Adam(difficulty.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        difficulty.loss(entities, vectors).backward()
        optimizer.step()
    assert difficulty(entities, vectors).tolist() == pytest.approx((torch.arange(40) / 39).tolist(), abs=0.1)


def test_what_the_generator_makes_does_not_teach_difficulty() -> None:
    model, vectors, _ = trained(rounds=0)
    known = conditions(vectors, torch.arange(10))
    assert not model.schedule(known).added.requires_grad
    assert not model.make(known, torch.Generator().manual_seed(0))[0].requires_grad


def test_the_denoiser_learns_and_better_with_conditions() -> None:
    _, _, with_conditions = trained()
    _, _, without = trained(conditions=False)
    last = [sum(lost[-50:]) / 50 for lost in (with_conditions, without)]
    assert with_conditions[0] > 0.9
    assert last[0] < 0.6
    assert last[0] < last[1]


@pytest.mark.parametrize("every_step", [False, True])
def test_harder_bands_lie_nearer_to_the_answer_and_all_fit_its_kind(*, every_step: bool) -> None:
    model, vectors, _ = trained(every_step=every_step)
    answer = torch.arange(ENTITIES).repeat(20)
    known, generator = conditions(vectors, answer), torch.Generator().manual_seed(2)
    distances, kinds = [], []
    for made in model.make(known, generator)[0].unbind(1):
        distances.append(float((made - vectors[answer]).norm(dim=1).mean()))
        nearest = torch.cdist(made, vectors).argmin(1)
        same = nearest // (ENTITIES // KINDS) == answer // (ENTITIES // KINDS)
        kinds.append(float(same.float().mean()))
    assert distances == sorted(distances)
    assert distances[0] < 0.7 * distances[3]
    assert kinds[0] > 0.95


@pytest.mark.parametrize(("every_step", "asked"), [(False, [20, 10, 4, 2]), (True, list(range(20, 1, -1)))])
def test_the_denoiser_is_asked_once_for_a_band_or_at_every_step(
    monkeypatch: pytest.MonkeyPatch, asked: list[int], *, every_step: bool
) -> None:
    model, vectors, _ = trained(rounds=0, every_step=every_step)
    seen: list[int] = []
    denoise = model.denoiser.forward

    def counting(noisy: Tensor, step: Tensor, *rest: Tensor) -> Tensor:
        seen.extend(step.unique().tolist())
        return denoise(noisy, step, *rest)

    monkeypatch.setattr(model.denoiser, "forward", counting)
    model.make(conditions(vectors, torch.arange(4)), torch.Generator().manual_seed(0))
    assert seen == asked


@pytest.mark.parametrize("mode", ["resolved", "paper"])
def test_both_readings_of_the_paper_make_finite_vectors(mode: str) -> None:
    model, vectors, lost = trained(rounds=20, mode=mode)
    made, _ = model.make(conditions(vectors, torch.arange(8)), torch.Generator().manual_seed(0))
    assert made.shape == (8, 4, WIDTH)
    assert made.isfinite().all()
    assert all(loss > 0 for loss in lost)


def test_the_same_seed_makes_the_same() -> None:
    model, vectors, _ = trained(rounds=5)
    known = conditions(vectors, torch.arange(4))
    first, second = (model.make(known, torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, second)
