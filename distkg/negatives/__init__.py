"""Where wrong answers come from."""

from distkg.negatives.known_facts import known_facts
from distkg.negatives.sources import SOURCES, NegativeSource

__all__ = ["SOURCES", "NegativeSource", "known_facts"]
