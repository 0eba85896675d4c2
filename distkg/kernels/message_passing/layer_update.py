"""Fused update of a message-passing layer: x + ReLU(LayerNorm(W [x, a] + b)).

For a graph of many entities the states of a batch do not fit into a cache, and each separate operation would read and
write all of memory. Here each block of rows goes through all operations while it is in cache. The parts of W are
applied separately, so x and a are never concatenated. Only the normalised rows are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu
from distkg.kernels.message_passing.large_tensors import empty
from distkg.kernels.products import product, product_over_rows, product_plus
from distkg.kernels.threads import for_each

EPSILON = 1e-5  # default of torch's layer norm
_BLOCK = 4096  # rows per block; sums over rows go block by block, independent of the number of threads
_PART = 512  # rows of a block per task of a thread


def layer_update(
    states: Tensor,
    gathered: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: bool = True,
    factor: Tensor | None = None,
) -> Tensor:
    """Compute the states after a layer: float32 [..., d]; differentiable in all tensors.

    Args:
        states, gathered: x and a, float32 [..., d] and [..., g]; a may be a sequence of parts [..., g'], [..., g''], …
        weight, bias: W [d, d + g] and b [d].
        scale, shift: parameters of the layer norm, [d].
        residual: add the states to the update.
        factor: float32 [..., m], multiplied with the last m numbers of a first.
    """
    inputs = states, *([gathered] if isinstance(gathered, Tensor) else gathered)
    vectors = bias, scale, shift
    if states.dtype != torch.float32 or not on_cpu(*inputs, weight, *vectors) or torch.is_autocast_enabled("cpu"):
        return reference_layer_update(states, gathered, weight, *vectors, residual, factor)
    updated: Tensor = _LayerUpdate.apply(residual, factor, weight, *vectors, *inputs)
    return updated


def reference_layer_update(
    states: Tensor,
    gathered: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: bool = True,
    factor: Tensor | None = None,
) -> Tensor:
    """Plain torch form of ``layer_update``, for any device."""
    parts = [gathered] if isinstance(gathered, Tensor) else list(gathered)
    if factor is not None:
        plain, multiplied = parts[-1].tensor_split([parts[-1].shape[-1] - factor.shape[-1]], dim=-1)
        parts[-1:] = [plain, multiplied * factor]
    linear = F.linear(torch.cat([states, *parts], dim=-1), weight, bias)
    update = F.relu(F.layer_norm(linear, scale.shape, scale, shift, EPSILON))
    return states + update if residual else update


class _LayerUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, residual, factor, weight, bias, scale, shift, *seen):  # type: ignore[no-untyped-def]
        rows = [each.reshape(-1, each.shape[-1]) for each in seen]
        by = None if factor is None else factor.reshape(-1, factor.shape[-1])
        maps = _maps(weight, rows, by)
        x, kept = rows[0], any(ctx.needs_input_grad)
        out = empty(x)
        normal, deviation = (empty(x), x.new_empty(len(x))) if kept else (x, x)
        for here in blocks_of(len(x)):
            first, *more = _seen(rows, by, here)
            linear = product(first, maps[0])
            for each, own in zip(more, maps[1:], strict=True):
                linear = product_plus(each, own, linear)
            kept_rows = (normal[here], deviation[here]) if kept else None
            normalise_parts(first, linear, bias, scale, shift, out[here], kept_rows, residual)
        ctx.save_for_backward(scale, shift, normal, deviation, by, *rows, *maps)
        ctx.shapes, ctx.residual = [each.shape for each in seen], residual
        return out.view(seen[0].shape)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        scale, shift, normal, deviation, by, *saved = ctx.saved_tensors
        rows, maps = saved[: len(ctx.shapes)], saved[len(ctx.shapes) :]
        g = gradient.reshape(normal.shape).contiguous()
        backs = [own.T.contiguous() for own in maps]
        to_rows = [empty(each) for each in rows]
        to_maps, to_vectors = [torch.zeros_like(own) for own in maps], g.new_zeros(3, len(scale))
        to_by = None if by is None else torch.empty_like(by)
        for here in blocks_of(len(g)):
            linear = torch.empty_like(g[here])
            sums = g.new_zeros(_parts(len(linear)), 3, len(scale))
            run_in_parts(_normalise_back, (g[here], normal[here], deviation[here], scale, shift, linear, sums))
            to_vectors += sums.sum(0)
            for each, to_map in zip(_seen(rows, by, here), to_maps, strict=True):
                to_map += product_over_rows(linear, each)
            for to_row, back in zip(to_rows, backs, strict=False):
                to_row[here] = product(linear, back)
            if by is not None:
                to_product, last = product(linear, backs[-1]), slice(-by.shape[1], None)
                to_by[here] = to_product * rows[-1][here, last]
                to_rows[-1][here, last] = to_product * by[here]
            if ctx.residual:
                to_rows[0][here] += g[here]
        shaped = [to_row.view(shape) for to_row, shape in zip(to_rows, ctx.shapes, strict=True)]
        if by is None:
            return None, None, torch.cat(to_maps, dim=1), *to_vectors, *shaped
        *to_plain, to_product = to_maps
        to_plain[-1][:, -by.shape[1] :] = to_product
        return None, to_by.view(*ctx.shapes[-1][:-1], -1), torch.cat(to_plain, dim=1), *to_vectors, *shaped


def _maps(weight: Tensor, rows: Sequence[Tensor], by: Tensor | None) -> list[Tensor]:
    """Split the weights into the part for each tensor of ``_seen``."""
    maps = [part.contiguous() for part in weight.split([each.shape[1] for each in rows], dim=1)]
    if by is not None:
        multiplied = maps[-1][:, -by.shape[1] :].contiguous()
        maps[-1] = maps[-1].clone()  # a single part would be a view of the weights
        maps[-1][:, -by.shape[1] :] = 0
        maps.append(multiplied)
    return maps


def _seen(rows: Sequence[Tensor], by: Tensor | None, here: slice) -> list[Tensor]:
    """Return a block of each tensor, and of the product with ``by``, whose columns have weight 0 in the last tensor."""
    blocks = [each[here] for each in rows]
    return blocks if by is None else [*blocks, blocks[-1][:, -by.shape[1] :] * by[here]]


def normalise_parts(
    states: Tensor,
    linear: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    out: Tensor,
    kept: tuple[Tensor, Tensor] | None = None,
    residual: bool = True,
) -> None:
    """Write ReLU(LayerNorm(linear + b)) of rows [m, d], plus the states if ``residual``, to ``out``.

    ``kept`` are float32 [m, d] and [m] for the normalised rows and the inverses of their deviations; None overwrites
    ``linear``.
    """
    normal, deviation = kept or (linear, linear.new_empty(len(linear)))
    run_in_parts(_normalise, (states, linear, bias, scale, shift, out, normal, deviation), residual)


def blocks_of(rows: int, caches: int = 1) -> Iterator[slice]:
    """Return the blocks of rows that go through a layer while they lie in so many caches together."""
    block = caches * _BLOCK
    return (slice(low, min(low + block, rows)) for low in range(0, rows, block))


def _parts(rows: int) -> int:
    return -(-rows // _PART)


def run_in_parts(kernel: Callable[..., None], tensors: Sequence[Tensor], *more: bool) -> None:
    """Run a kernel on each part of the rows of the first tensor."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    rows = len(arrays[0])
    parts = [(part, part * _PART, min((part + 1) * _PART, rows)) for part in range(_parts(rows))]
    for_each(parts, lambda *part: kernel(*part, *arrays, *more))


# Numbers stay float32, and a maximum is a conditional expression: this lets the compiler vectorise the loops.
@kernel
def _normalise(part, low, high, x, linear, bias, scale, shift, out, normal, deviation, residual):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    share, kept, none = np.float32(1 / width), np.float32(residual), np.float32(0)
    for i in range(low, high):
        total, squares = none, none
        for c in range(width):
            total += linear[i, c] + bias[c]
        mean = total * share
        for c in range(width):
            value = linear[i, c] + bias[c] - mean
            squares += value * value
        inverse = np.float32(1) / np.sqrt(squares * share + np.float32(EPSILON))
        deviation[i] = inverse
        for c in range(width):
            value = (linear[i, c] + bias[c] - mean) * inverse
            normal[i, c] = value
            value = value * scale[c] + shift[c]
            out[i, c] = (value if value > 0 else none) + kept * x[i, c]


@kernel
def _normalise_back(part, low, high, g, normal, deviation, scale, shift, linear, sums):  # type: ignore[no-untyped-def]
    width = g.shape[1]
    share, none = np.float32(1 / width), np.float32(0)
    for i in range(low, high):
        total, along = none, none
        for c in range(width):
            value = normal[i, c]
            passed = g[i, c] if value * scale[c] + shift[c] > 0 else none
            sums[part, 1, c] += passed * value
            sums[part, 2, c] += passed
            passed *= scale[c]
            linear[i, c] = passed
            total += passed
            along += passed * value
        total, along, inverse = total * share, along * share, deviation[i]
        for c in range(width):
            value = inverse * (linear[i, c] - total - normal[i, c] * along)
            linear[i, c] = value
            sums[part, 0, c] += value
