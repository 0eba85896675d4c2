"""Tests that need DGL, whose wheels end at Python 3.11; the twin of each runs everywhere, and so does what is said."""

from __future__ import annotations

import importlib.util

import pytest

HAS_DGL = importlib.util.find_spec("dgl") is not None
needs_dgl = pytest.mark.skipif(not HAS_DGL, reason="DGL is not installed: it has no wheel for this Python")
SAMPLERS = ["compiled", pytest.param("dgl", marks=needs_dgl)]
