"""Errors of configurations."""

from __future__ import annotations


class ConfigError(ValueError):
    """Error of a configuration that cannot be used; the message names the key and what to write instead."""
