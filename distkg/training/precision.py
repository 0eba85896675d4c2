"""Precisions that a configuration requests but machines of a run lack, and messages about the precision used
instead."""

from __future__ import annotations

import torch

from distkg.config import RunConfig
from distkg.kernels import cpu
from distkg.objectives import ALL_ENTITIES, QUERY_SAMPLING
from distkg.sharding.ranks import Ranks


def product_precision(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return ``objective.products`` if this process has instructions for it; else float32, which is faster there."""
    requested: torch.dtype = getattr(torch, config.objective.products)
    return requested if _multiplies(requested, device) else torch.float32


def missing_precisions(config: RunConfig, ranks: Ranks) -> list[str]:
    """Return a sentence for each precision that not all ranks have, the same on every rank; collective."""
    lacks = product_precision(config, ranks.device) != getattr(torch, config.objective.products)
    counts = ranks.all_gather(torch.tensor([lacks, ranks.device.type == "cpu"]).long()[None])
    lacking, on_cpu = counts.sum(0).tolist()
    return _sentences(config, lacking, on_cpu, ranks.size)


def missing_precisions_here(config: RunConfig) -> list[str]:
    """Return ``missing_precisions`` for a run whose workers all compute on this machine."""
    workers = config.train.workers
    device = "cuda" if config.cluster.gpus_per_worker > 0 and torch.cuda.is_available() else "cpu"
    lacks = product_precision(config, torch.device(device)) != getattr(torch, config.objective.products)
    return _sentences(config, workers * lacks, workers * (device == "cpu"), workers)


def _multiplies(precision: torch.dtype, device: torch.device) -> bool:
    if precision == torch.float32:
        return True
    if device.type == "cpu":
        return cpu.has_fast_bfloat16()
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _sentences(config: RunConfig, lacking: int, on_cpu: int, workers: int) -> list[str]:
    sentences = []
    if lacking and config.objective.name in (*ALL_ENTITIES, QUERY_SAMPLING):
        sentences.append(
            f"objective.products: bfloat16 needs instructions for bfloat16 (AVX-512 BF16, AMX or Arm's), which "
            f"{_share(lacking, workers)} not have. Products are made in float32 there."
        )
    if on_cpu and config.train.precision != "float32":
        sentences.append(
            f"train.precision: {config.train.precision} is for GPUs. On the CPUs of this run it changes nothing: they "
            "compute in float32."
        )
    return sentences


def _share(part: int, workers: int) -> str:
    if part < workers:
        return f"{part} of {workers} workers do"
    return "this machine does" if workers == 1 else f"the {workers} workers do"
