"""Runs on Ray Train: launch, trainer, process group, policies."""
