"""CompGCN: graph convolutions over compositions of entities with relations (Vashishth et al. 2020, arXiv
1911.03082)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, ModelOptions
from distkg.foundation.layers.gcn import GcnOptions, GraphConvolutionModel, mean_weight, vectors
from distkg.foundation.layers.relational import Layers
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.sums import propagate

Composition = Literal["sub", "mult", "corr"]


def compose(states: Tensor, relation: Tensor, how: Composition) -> Tensor:
    """Return φ(x, z) of each row, float32 [n, d]: x - z, x z, or the circular correlation Σ_i x[i] z[i + k] at index k.

    Args:
        states: float32 [n, d].
        relation: float32 [d].
    """
    if how == "sub":
        return states - relation
    if how == "mult":
        return states * relation
    return torch.fft.irfft(torch.fft.rfft(states).conj() * torch.fft.rfft(relation), n=states.shape[-1])


def gather_compositions(states: Tensor, relations: Tensor, edges: Edges, weight: Tensor, how: Composition) -> Tensor:
    """Return the weighted sum of φ(x[v], z[r]) over the edges (u, r, v) of each u: float32 [n, d].

    Args:
        states: float32 [n, d].
        relations: float32 [kinds, d].
        weight: float32 [E].
    """
    inputs, factors = states[None], relations[None]
    if how == "sub":
        return propagate(inputs, -factors, edges, weight, "transe")[0]
    if how == "mult":
        return propagate(inputs, factors, edges, weight, "distmult")[0]
    # A correlation is a complex product of spectra, and the sum of spectra is the spectrum of the sum.
    spectra = _halves(torch.fft.rfft(inputs).conj()), _halves(torch.fft.rfft(factors))
    real, imaginary = propagate(*spectra, edges, weight, "rotate")[0].chunk(2, dim=-1)
    return torch.fft.irfft(torch.complex(real, imaginary), n=states.shape[-1])


def _halves(spectrum: Tensor) -> Tensor:
    return torch.cat([spectrum.real, spectrum.imag], dim=-1)


class CompositionConvolution(nn.Module):
    """CompGCN layer: x[u] becomes tanh(W_s φ(x[u], z_s) + mean over edges (u, r, v) of W φ(x[v], z[r])), and z becomes
    W_r z.

    W is one matrix for facts and another for their inverses.
    """

    def __init__(self, width: int, relations: int, how: Composition) -> None:
        super().__init__()
        self._relations, self._how = relations, how
        self.fact, self.inverse, self.loop, self.relation = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.bias = nn.Parameter(torch.zeros(width))
        self.loop_relation = vectors(1, width)

    def forward(self, states: Tensor, relations: Tensor, edges: Edges, weight: Tensor) -> Tensor:
        """Return entity states float32 [N, d] of states [N, d] and relations [2R, d]; ``weight`` is float32 [E]."""
        direct = (edges.relation < self._relations).to(weight)
        by_facts, by_inverses = (
            gather_compositions(states, relations, edges, part, self._how)
            for part in (weight * direct, weight * (1 - direct))
        )
        own = compose(states, self.loop_relation[0], self._how)
        return torch.tanh(self.fact(by_facts) + self.inverse(by_inverses) + self.loop(own) + self.bias)


class CompgcnOptions(GcnOptions):
    composition: Composition = Field(
        "mult",
        description="Composition of entity and relation: sub (difference), mult (product) or corr (circular "
        "correlation).",
    )


@MODELS.register("compgcn")
class Compgcn(GraphConvolutionModel):
    """Composition-based graph convolutions with the mean over all facts of an entity, and a decoder."""

    Options = CompgcnOptions
    name = "compgcn"

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, CompgcnOptions)
        self.relation = vectors(2 * options.relations, options.width)
        self.layers = Layers[CompositionConvolution](
            CompositionConvolution(options.width, options.relations, options.composition) for _ in range(options.layers)
        )

    def relations(self) -> Tensor:
        relations: Tensor = self.relation
        for layer in self.layers:
            relations = layer.relation(relations)
        return relations

    def encoded(self, facts: Edges, weight: Tensor | None) -> Tensor:
        states: Tensor = self.entity
        relations: Tensor = self.relation
        for number, layer in enumerate(self.layers):
            states = layer(states, relations, facts, mean_weight(facts, weight, number))
            relations = layer.relation(relations)
        return states
