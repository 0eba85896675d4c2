"""Bridges to other systems of the field; each needs that system installed."""
