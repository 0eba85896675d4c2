"""DANS-KGC (Li, Huang 2026, arXiv 2511.07901): negatives that a diffusion model makes, as hard as they should be."""

from distkg.negatives.dans import source

__all__ = ["source"]
