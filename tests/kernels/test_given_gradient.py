"""Backward passes from gradients that are known, without torch's import of SymPy."""

from __future__ import annotations

import subprocess
import sys

import torch

from distkg.kernels.given_gradient import with_gradient


def test_a_gradient_goes_on_to_the_leaves() -> None:
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    output = leaf * 3
    with torch.no_grad():  # as in the backward pass of a function
        nothing = with_gradient(output, torch.tensor([10.0, -1.0]))
    assert nothing.item() == 0
    (leaf.sum() + nothing).backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [31.0, -2.0]


def test_no_similarity_needs_sympy() -> None:
    script = """
import sys
import torch
from distkg.kernels.scores.poincare_distance import HyperbolicSimilarity
from distkg.kernels.scores.similarity import RotLSimilarity
for similarity, width in ((RotLSimilarity(), 4), (HyperbolicSimilarity(bias=False), 5)):
    query, rows = torch.rand(2, width) / 9, torch.rand(3, 4) / 9
    scores = similarity.scores(query, rows)
    to_query, to_rows = similarity.gradients(torch.ones_like(scores), scores, query, rows)
    assert to_query.any() and to_rows.any()
print("sympy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
