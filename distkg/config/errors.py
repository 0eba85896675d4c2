"""Errors of configurations."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what to write instead."""
