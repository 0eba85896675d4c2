"""Scores against numbers worked out by hand, and against loops written from the papers' formulas."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from distkg.config import ModelConfig
from distkg.embedding.scorers import SCORERS, Scorer, make_scorer

Row = list[float]


def build(name: str, dim: int, **options: Any) -> Scorer:
    torch.manual_seed(0)
    return make_scorer(ModelConfig(name=name, dim=dim, options=options)).double().eval()


def score(scorer: Scorer, anchor: Row, relation: Row, answer: Row) -> float:
    h, r, t = (torch.tensor([row], dtype=torch.float64) for row in (anchor, relation, answer))
    with torch.no_grad():
        return scorer.similarity.pairs(scorer.query(h, r), scorer.candidates(t)).item()


HALF_TURN, QUARTER_TURN = math.pi, math.pi / 2
ONE = math.log(math.e - 1)  # softplus of it is 1
HALF = math.atanh(0.5)  # exp₀ takes it to ½ where c = 1
BY_HAND = [
    # 1.5-0, 1-3
    ("transe", 2, {"norm": "l1"}, [1, 2], [0.5, -1], [0, 3], -3.5),
    ("transe", 2, {"norm": "l2"}, [1, 2], [0.5, -1], [0, 3], -2.5),
    ("transe", 2, {"norm": "squared_l2"}, [1, 2], [0.5, -1], [0, 3], -6.25),
    # 2 - 2 + 6
    ("distmult", 3, {}, [1, 2, 3], [1, -1, 0.5], [2, 1, 4], 6),
    # (1, -2, 1.5) - (2, 1, 4)
    ("distmult", 3, {"distance": "squared_l2"}, [1, 2, 3], [1, -1, 0.5], [2, 1, 4], -16.25),
    # (1+2i)(3-i) = 5+5i; (5+5i)(2-i) = 15+5i
    ("complex", 2, {}, [1, 2], [3, -1], [2, 1], 15),
    # (1+2i)i - (1+5i) = -3-4i and (1+0i)(-1) - (2+4i) = -3-4i
    ("rotate", 4, {}, [1, 1, 2, 0], [QUARTER_TURN, HALF_TURN], [1, 2, 5, 4], -10),
    ("rotate", 4, {"distance": "squared_l2"}, [1, 1, 2, 0], [QUARTER_TURN, HALF_TURN], [1, 2, 5, 4], -50),
    # (1·1·7 + 2·0·8 + 5·2·3 + 6·1·4) / 2
    ("simple", 4, {}, [1, 2, 3, 4], [1, 0, 2, 1], [5, 6, 7, 8], 30.5),
    # (7, 10)·(5, 6)
    ("rescal", 2, {}, [1, 2], [1, 2, 3, 4], [5, 6], 95),
    # i ⊗ j = k
    ("quate", 4, {}, [0, 1, 0, 0], [0, 0, 2, 0], [1, 2, 3, 4], 4),
    ("cp", 1, {}, [2, 3], [5], [7, 11], 110),
    # |.6·5 - 0·1| + |.8·5 - 1·2|
    ("pairre", 2, {}, [3, 4], [5, 5, 1, 2], [0, 2], -5),
    # |.6·(4+1) + 1 - 0·(1+1)| + |.8·(4+1) - 2 - 1·(2+1)|
    ("triplere", 2, {}, [3, 4], [4, 4, 1, -2, 1, 2], [0, 2], -5),
    ("triplere", 2, {"offset": 0}, [3, 4], [5, 5, 1, -2, 1, 2], [0, 2], -4),
    # |.6·2 - 0·1 + 1| + |.8·1 - 1·2 - 2|
    ("interht", 2, {}, [3, 4, 0, 1], [1, -2], [0, 5, 7, 0], -5.4),
    # |.6·2 - 0·1 + .6 + 1 + 0| + |.8·1 - 1·2 + 3·.8 - 2 + 1|
    ("trans", 2, {}, [3, 4, 0, 1], [1, 3, 1, -2, 5, 1], [0, 5, 7, 0], -3),
    # |3·(|-2| + .5) - 7·(1 - .5)| = 4, and a weight of .5 · 8 times sin of a quarter of a turn, at 8/π for a radian
    ("hake", 2, {}, [3, 0], [8, -2, 0.5], [7, 4], -4 - 4 * math.sin(math.pi / 4)),
    # r′ is kept in [-2, 1]: |3·0 - 7·3| and |3·3 - 7·0|
    ("hake", 2, {"modulus_weight": 2.0}, [3, 0], [0, -2, -9], [7, 0], -42),
    ("hake", 2, {"modulus_weight": 2.0}, [3, 0], [0, -2, 9], [7, 0], -18),
    # (0, 1) + (1, 1) - (1, 5)
    ("rote", 2, {}, [1, 0], [QUARTER_TURN, 1, 1], [1, 5], -9),
    ("rote", 2, {"bias": True}, [1, 0, 0.5], [QUARTER_TURN, 1, 1], [1, 5, 2], -6.5),
    # ‖q - c‖ = √½, q·c = 0: √½ e^√½
    ("rotl", 2, {}, [0.5, 0], [0, 0, 0], [0, 0.5], -1.434094),
    # ‖q - c‖ = 1, 1 - q·c = -1, α = 2 halves nothing of q = 2·(1, 0)/1: 2 e²
    ("rotl", 2, {"alpha": 2.0}, [1, 0], [0, 0, 0], [1, 0], -14.778112),
    # q = α(x + y)/(1 + x·y) = .5·(2, 1)/2 = (.5, .25); c = 0: x = .5·√.3125
    ("rotl", 2, {"alpha": 0.5}, [1, 0], [0, 1, 1], [0, 0], -0.369644),
    # q = (.5, .25) again, c = (0, 1)
    ("rotl", 2, {"alpha": 0.5, "distance": "squared_l2"}, [1, 0], [0, 1, 1], [0, 1], -0.8125),
    # α = .25 + .25 in the query, .25 in the comparison: x = .25·√.3125
    ("rotl", 2, {"alpha": 0.25, "relation_alpha": True}, [1, 0], [0, 1, 1, 0.25], [0, 0], -0.160716),
    # (0, ½) from (½, 0) by a quarter turn: arcosh(1 + 2 · ½ / ¾²) = 1.680699 from (½, 0)
    ("roth", 2, {"bias": False}, [HALF, 0], [QUARTER_TURN, 0, 0, ONE], [HALF, 0], -2.824750),
    ("roth", 2, {}, [HALF, 0, 0.5], [QUARTER_TURN, 0, 0, ONE], [HALF, 0, 2], -0.324750),
    # on one line arguments of exp₀ add up: 2 (.3 + .4 - .2)
    ("roth", 2, {"curvature": "fixed"}, [0.3, 0, 0], [0, 0.4, 0], [0.2, 0, 0], -1),
    # (0, ½) mirrored at the x axis: 4 artanh ½ from (0, ½)
    ("refh", 2, {"bias": False}, [0, HALF], [0, 0, 0, ONE], [0, HALF], -4.827796),
    # x = (0, artanh ½), y = -x, a = (0, 1): shares ¾ and ¼, for e^(2 artanh ½) = 3; 2 · ½ artanh ½ from the origin
    ("atth", 2, {}, [0, HALF, 1], [0, 0, 0, 1, 0, 0, ONE], [0, 0, -1], -0.301737),
    # (.4, -.4), then 2 · |.5 · 1 - .2 - (-.1)|
    ("murp", 2, {}, [0.2, 0.4, 0], [2, -1, 0, 0, ONE], [0, 0, 0], -1.28),
    ("murp", 2, {"curvature": "fixed"}, [1, 0, 1], [0.5, 3, 0.2, 0], [-0.1, 0, 2], 2.36),
]


@pytest.mark.parametrize(("name", "dim", "options", "anchor", "relation", "answer", "expected"), BY_HAND)
def test_scores_worked_out_by_hand(
    name: str, dim: int, options: dict[str, Any], anchor: Row, relation: Row, answer: Row, expected: float
) -> None:
    assert score(build(name, dim, **options), anchor, relation, answer) == pytest.approx(expected, abs=2e-6)


def test_tucker_by_hand() -> None:
    scorer = build("tucker", 2, relation_dim=1)
    scorer.load_state_dict({"core": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=torch.float64)}, strict=False)
    # Untrained batch norms divide by √(1 + 1e-5) each: 2·(1+3, 2+4)·(1, 1) = 20.
    assert score(scorer, [1, 1], [2], [1, 1]) == pytest.approx(20 / 1.00001, abs=1e-9)


def numbers(row: Row) -> list[complex]:
    half = len(row) // 2
    return [complex(row[i], row[half + i]) for i in range(half)]


def transe(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    return -sum(abs(a + b - c) for a, b, c in zip(h, r, t, strict=True))


def distmult(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    return sum(a * b * c for a, b, c in zip(h, r, t, strict=True))


def complex_(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    triples = zip(numbers(h), numbers(r), numbers(t), strict=True)
    return sum((a * b * c.conjugate()).real for a, b, c in triples)


def rotate(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    return -sum(abs(a * cmath.exp(1j * b) - c) for a, b, c in zip(numbers(h), r, numbers(t), strict=True))


def simple(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    half = len(h) // 2
    forward = sum(h[i] * r[i] * t[half + i] for i in range(half))
    backward = sum(t[i] * r[half + i] * h[half + i] for i in range(half))
    return (forward + backward) / 2


def rescal(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    size = len(h)
    return sum(h[i] * r[i * size + j] * t[j] for i in range(size) for j in range(size))


def tucker(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    weights = {key: value.tolist() for key, value in scorer.state_dict().items()}
    core, size = weights["core"], len(h)
    x = [norm(h[i], weights, "input_norm", i) for i in range(size)]
    total = 0.0
    for j in range(size):
        moved = sum(core[k][i][j] * r[k] * x[i] for k in range(len(r)) for i in range(size))
        total += norm(moved, weights, "output_norm", j) * t[j]
    return total


def norm(value: float, weights: dict[str, Any], layer: str, channel: int) -> float:
    mean, variance, weight, bias = (
        weights[f"{layer}.{part}"][channel] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (value - mean) / math.sqrt(variance + 1e-5) * weight + bias


def conve(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    weights = {key: value.tolist() for key, value in scorer.state_dict().items()}
    filters, dim, columns = weights["convolution.weight"], len(r), 4  # dim 16 lies as 4 rows of 4
    flat = [norm(value, weights, "input_norm", 0) for value in [*h[:dim], *r]]
    maps: Row = []
    for channel, bank in enumerate(filters):
        for y in range(8 - 2):
            for x in range(columns - 2):
                window = [flat[(y + i) * columns + x + j] * bank[0][i][j] for i in range(3) for j in range(3)]
                value = sum(window) + weights["convolution.bias"][channel]
                maps.append(max(0.0, norm(value, weights, "feature_norm", channel)))
    total = t[dim]
    for j, line in enumerate(weights["projection.weight"]):
        hidden = sum(a * b for a, b in zip(line, maps, strict=True)) + weights["projection.bias"][j]
        total += max(0.0, norm(hidden, weights, "output_norm", j)) * t[j]
    return total


TIMES = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]  # unit a times unit b is ± unit TIMES[a][b]
SIGNS = [[1, 1, 1, 1], [1, -1, 1, -1], [1, -1, -1, 1], [1, 1, -1, -1]]  # i·j = k, j·k = i, k·i = j


def quate(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    count, total = len(h) // 4, 0.0
    for n in range(count):
        length = math.sqrt(sum(r[part * count + n] ** 2 for part in range(4)))
        for a in range(4):
            for b in range(4):
                product = SIGNS[a][b] * h[a * count + n] * r[b * count + n] / length
                total += product * t[TIMES[a][b] * count + n]
    return total


def cp(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    return sum(h[i] * r[i] * t[len(r) + i] for i in range(len(r)))


def pairre(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    size, of_h, of_t = len(h), math.hypot(*h), math.hypot(*t)
    return -sum(abs(h[i] / of_h * r[i] - t[i] / of_t * r[size + i]) for i in range(size))


def triplere(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    size, of_h, of_t = len(h), math.hypot(*h), math.hypot(*t)
    return -sum(abs(h[i] / of_h * (r[i] + 1) + r[size + i] - t[i] / of_t * (r[2 * size + i] + 1)) for i in range(size))


def auxiliary_translation(h: Row, t: Row, i: int) -> float:
    """h ∘ (t′ + e) − t ∘ (h′ + e) at place i, of rows of two vectors."""
    size = len(h) // 2
    (one, of_one), (other, of_other) = (
        [row[i] / math.hypot(*row[:size]), row[size + i] / math.hypot(*row[size:])] for row in (h, t)
    )
    return one * (of_other + 1) - other * (of_one + 1)


def interht(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    return -sum(abs(auxiliary_translation(h, t, i) + r[i]) for i in range(len(r)))


def trans(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    size, total = len(r) // 3, 0.0
    of_h, of_t = math.hypot(*h[:size]), math.hypot(*t[:size])
    for i in range(size):
        synthetic = r[i] * h[i] / of_h + r[size + i] + r[2 * size + i] * t[i] / of_t
        total -= abs(auxiliary_translation(h, t, i) + synthetic)
    return total


def hake(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    size = len(r) // 3
    bound = 8 / size
    squares, phases = 0.0, 0.0
    for i in range(size):
        own = abs(r[size + i])
        bias = max(min(r[2 * size + i], 1), -own)
        squares += (h[i] * (own + bias) - t[i] * (1 - bias)) ** 2
        phases += abs(math.sin((h[size + i] + r[i] - t[size + i]) * math.pi / bound / 2))
    return -math.sqrt(squares) - 0.5 * bound * phases


def rote(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    half, total = len(h) // 2, 0.0
    shift, answer = numbers(r[half:]), numbers(t)
    for j, number in enumerate(numbers(h)):
        total -= abs(number * cmath.exp(1j * r[j]) + shift[j] - answer[j]) ** 2
    return total


def rotl(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    half = len(h) // 2
    shift = r[half:]
    turned = [number * cmath.exp(1j * r[j]) for j, number in enumerate(numbers(h))]
    x = [number.real for number in turned] + [number.imag for number in turned]
    below = 1 + sum(a * b for a, b in zip(x, shift, strict=True))
    q = [(a + b) / below for a, b in zip(x, shift, strict=True)]
    distance = math.dist(q, t) / abs(1 - sum(a * b for a, b in zip(q, t, strict=True)))
    return -distance * math.exp(distance)


def exp0(v: Row, c: float) -> Row:
    size = math.sqrt(c) * math.hypot(*v)
    return [math.tanh(size) * part / size for part in v]


def mobius(x: Row, y: Row, c: float) -> Row:
    xy, xx, yy = (sum(a * b for a, b in zip(*both, strict=True)) for both in ((x, y), (x, x), (y, y)))
    of_x, of_y, below = 1 + 2 * c * xy + c * yy, 1 - c * xx, 1 + 2 * c * xy + c * c * xx * yy
    return [(of_x * a + of_y * b) / below for a, b in zip(x, y, strict=True)]


def squared_distance(x: Row, y: Row, c: float) -> float:
    gap = mobius([-part for part in x], y, c)
    return (2 / math.sqrt(c) * math.atanh(math.sqrt(c) * math.hypot(*gap))) ** 2


def givens(x: Row, angles: Row, sign: int) -> Row:
    """Each block [[cos, -sign sin], [sin, sign cos]] times its pair of coordinates: 1 turns, -1 mirrors."""
    half = len(angles)
    first = [math.cos(a) * x[j] - sign * math.sin(a) * x[half + j] for j, a in enumerate(angles)]
    return first + [math.sin(a) * x[j] + sign * math.cos(a) * x[half + j] for j, a in enumerate(angles)]


def in_the_ball(h: Row, r: Row, t: Row, query: Callable[[Row, float], Row], shifted: bool = False) -> float:
    """-d(query(exp₀ h) ⊕ exp₀ r′, exp₀ t)², or with r′ ⊕ at the answer, and the biases."""
    size = len(h) - 1
    c = math.log1p(math.exp(r[-1]))
    shift, moved, answer = exp0(r[-1 - size : -1], c), query(exp0(h[:size], c), c), exp0(t[:size], c)
    ends = (moved, mobius(shift, answer, c)) if shifted else (mobius(moved, shift, c), answer)
    return h[size] + t[size] - squared_distance(*ends, c)


def roth(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    return in_the_ball(h, r, t, lambda point, c: givens(point, r[:8], 1))


def refh(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    return in_the_ball(h, r, t, lambda point, c: givens(point, r[:8], -1))


def log0(x: Row, c: float) -> Row:
    size = math.sqrt(c) * math.hypot(*x)
    return [math.atanh(size) * part / size for part in x]


def atth(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    def attention(point: Row, c: float) -> Row:
        ends = [log0(givens(point, r[:8], 1), c), log0(givens(point, r[8:16], -1), c)]
        weights = [math.exp(sum(a * b for a, b in zip(r[16:32], end, strict=True))) for end in ends]
        shares = [weight / sum(weights) for weight in weights]
        return exp0([shares[0] * a + shares[1] * b for a, b in zip(*ends, strict=True)], c)

    return in_the_ball(h, r, t, attention)


def murp(scorer: Scorer, h: Row, r: Row, t: Row) -> float:
    def stretched(point: Row, c: float) -> Row:
        return exp0([a * b for a, b in zip(r[:16], log0(point, c), strict=True)], c)

    return in_the_ball(h, r, t, stretched, shifted=True)


LOOPS: dict[str, Callable[[Scorer, Row, Row, Row], float]] = {
    "transe": transe,
    "distmult": distmult,
    "complex": complex_,
    "rotate": rotate,
    "simple": simple,
    "rescal": rescal,
    "tucker": tucker,
    "quate": quate,
    "conve": conve,
    "cp": cp,
    "pairre": pairre,
    "triplere": triplere,
    "interht": interht,
    "trans": trans,
    "hake": hake,
    "rote": rote,
    "rotl": rotl,
    "roth": roth,
    "refh": refh,
    "atth": atth,
    "murp": murp,
}


def test_every_scorer_has_a_formula() -> None:
    assert sorted(LOOPS) == sorted(SCORERS)


@pytest.mark.parametrize("name", LOOPS)
def test_scores_match_the_papers_formula(name: str) -> None:
    scorer = build(name, 16, **({"channels": 2} if name == "conve" else {}))
    disturb_batch_norms(scorer)
    draw = np.random.default_rng(5)
    for _ in range(5):
        h, t = (draw.normal(0, 0.15, scorer.entity_width).tolist() for _ in range(2))
        r = draw.normal(0, 0.15, scorer.relation_width).tolist()
        expected = LOOPS[name](scorer, h, r, t)
        assert abs(expected) > 1e-6
        assert score(scorer, h, r, t) == pytest.approx(expected, rel=1e-9)


def disturb_batch_norms(scorer: Scorer) -> None:
    """Statistics and scales other than 0 and 1, so that each counts."""
    for key, value in scorer.state_dict().items():
        if "norm" in key and value.is_floating_point():
            value.uniform_(0.5, 1.5)


def test_rotl_stays_finite_where_denominators_vanish() -> None:
    scorer = build("rotl", 2)
    # 1 + x·y = 0 in the query: (x + y)/.01 = (1, -1)·0 … here x = (1, 0), y = (-1, 1): (0, 100).
    query = scorer.query(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -1.0, 1.0]]))
    torch.testing.assert_close(query, torch.tensor([[0.0, 100.0]]))
    # 1 - q·c = 0: x = ‖(1, 0) - (1, 1)‖ / .01 = 100, on the tangent of x eˣ at 10.
    expected = -(10 * math.exp(10) + 11 * math.exp(10) * 90)
    assert score(scorer, [1, 0], [0, 0, 0], [1, 1]) == pytest.approx(expected, rel=1e-9)
