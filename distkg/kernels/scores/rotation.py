"""Rotation of complex numbers by angles, with one compiled pass each forward and backward.

Plain torch needs twelve passes over memory, and spends most of the time on sine and cosine.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel_in_order, on_cpu
from distkg.kernels.vectors.fast_math import sine_and_cosine


def rotate(vector: Tensor, phase: Tensor) -> Tensor:
    """Rotate each complex number of ``vector`` [..., 2n] by its angle in ``phase`` [..., n], in radians.

    A vector is [real half | imaginary half]. Compiled for float32 on CPU, where it is differentiable once; elsewhere it
    is differentiable any number of times.
    """
    single = vector.dtype == phase.dtype == torch.float32 and vector.shape[:-1] == phase.shape[:-1]
    if not single or not on_cpu(vector, phase) or torch.compiler.is_compiling():
        return reference_rotate(vector, phase)
    turned: Tensor = _Rotate.apply(vector, phase)
    return turned


def reference_rotate(vector: Tensor, phase: Tensor) -> Tensor:
    """Plain torch form of ``rotate``, for any dtype and device."""
    real, imaginary = vector.chunk(2, dim=-1)
    cosine, sine = phase.cos(), phase.sin()
    return torch.cat((real * cosine - imaginary * sine, real * sine + imaginary * cosine), dim=-1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vector: Tensor, phase: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        out = torch.empty_like(vector, memory_format=torch.contiguous_format)
        _turn(_rows(vector), _rows(phase), _rows(out))
        ctx.save_for_backward(phase, out)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        phase, out = ctx.saved_tensors
        to_vector = torch.empty_like(out)
        to_phase = torch.empty_like(phase, memory_format=torch.contiguous_format)
        _turn_back(_rows(gradient), _rows(phase), _rows(out), _rows(to_vector), _rows(to_phase))
        return to_vector, to_phase


def _rows(tensor: Tensor) -> np.ndarray:
    """Reshape [..., w] to a contiguous array [rows, w]; a view if the tensor is contiguous."""
    array: np.ndarray = tensor.detach().contiguous().view(-1, tensor.shape[-1]).numpy()
    return array


@kernel_in_order
def _turn(vector: np.ndarray, phase: np.ndarray, out: np.ndarray) -> None:
    half = phase.shape[1]
    for i in range(phase.shape[0]):
        angle, real, imaginary = phase[i], vector[i, :half], vector[i, half:]
        out_real, out_imaginary = out[i, :half], out[i, half:]
        for j in range(half):
            sine, cosine = sine_and_cosine(angle[j])
            out_real[j] = real[j] * cosine - imaginary[j] * sine
            out_imaginary[j] = real[j] * sine + imaginary[j] * cosine


@kernel_in_order
def _turn_back(
    gradient: np.ndarray, phase: np.ndarray, out: np.ndarray, to_vector: np.ndarray, to_phase: np.ndarray
) -> None:
    half = phase.shape[1]
    for i in range(phase.shape[0]):
        angle, real, imaginary = phase[i], gradient[i, :half], gradient[i, half:]
        out_real, out_imaginary = out[i, :half], out[i, half:]
        to_real, to_imaginary, to_angle = to_vector[i, :half], to_vector[i, half:], to_phase[i]
        for j in range(half):
            sine, cosine = sine_and_cosine(angle[j])
            to_real[j] = real[j] * cosine + imaginary[j] * sine
            to_imaginary[j] = imaginary[j] * cosine - real[j] * sine
            to_angle[j] = imaginary[j] * out_real[j] - real[j] * out_imaginary[j]
