"""Models that rank facts in graphs that they have never seen: no vector belongs to an entity or a relation."""
