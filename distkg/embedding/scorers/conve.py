"""ConvE (Dettmers et al. 2018, arXiv 1707.01476, eq. 1): score = f(vec(f([h̄; r̄] ∗ ω)) W) · t + b_t.

Anchor and relation are reshaped to images of ``height`` rows, stacked and convolved. Defaults (dropout .2, .2 and .3,
32 channels of 3×3) and the batch normalisation of input, feature maps and output are the paper's. The entity bias b_t
is the last column of an entity row. Layers have torch's default initialisation. Embeddings start normal with variance
1/dim (Glorot and Bengio 2010, for one row, so that the scale does not depend on the table's length), biases at 0. In
distributed runs batch-norm statistics are those of each rank's queries.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distkg.config import ConfigError
from distkg.embedding.scorers.base import SCORERS, Options, Scorer
from distkg.embedding.scorers.batch_norm import ImageNorm, RowNorm


class ConvEOptions(Options):
    channels: int = Field(32, ge=1, description="Number of convolution filters.")
    kernel: int = Field(3, ge=1, description="Height and width of a filter.")
    height: int | None = Field(
        None,
        ge=1,
        description="Rows of a vector's image; default: the largest divisor of dim up to √(2 dim).",
    )
    input_dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of the stacked image.")
    feature_dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of whole feature maps.")
    hidden_dropout: float = Field(0.3, ge=0, lt=1, description="Dropout of the projected features.")


@SCORERS.register("conve")
class ConvE(Scorer):
    """ConvE scorer. Entity rows [vector dim | bias 1], relation rows [dim]."""

    Options = ConvEOptions

    def __init__(self, dim: int, options: ConvEOptions) -> None:
        height = options.height or default_height(dim)
        super().__init__(dim, options.model_copy(update={"height": height}))
        features = options.channels * math.prod(feature_map_shape(dim, height, options.kernel))
        self.entity_width = dim + 1
        self.image = (height, dim // height)
        self.input_norm = ImageNorm(1)
        self.input_dropout = nn.Dropout(options.input_dropout)
        self.convolution = nn.Conv2d(1, options.channels, options.kernel)
        self.feature_norm = ImageNorm(options.channels)
        self.feature_dropout = nn.Dropout2d(options.feature_dropout)
        self.projection = nn.Linear(features, dim)
        self.hidden_dropout = nn.Dropout(options.hidden_dropout)
        self.output_norm = RowNorm(dim)

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors [B, dim + 1]; the last column is 1, so that the product with a row adds its bias."""
        images = [vector.unflatten(1, self.image) for vector in (anchor[:, : self.dim], relation)]
        stacked = self.input_dropout(self.input_norm(torch.cat(images, dim=1).unsqueeze(1)))
        maps = self.feature_dropout(F.relu(self.feature_norm(self.convolution(stacked))))
        hidden = F.relu(self.output_norm(self.hidden_dropout(self.projection(maps.flatten(1)))))
        return torch.cat((hidden, hidden.new_ones(hidden.shape[0], 1)), dim=1)

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return anchor[:, : self.dim].abs(), relation.abs(), answer[:, : self.dim].abs()

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        rows.normal_(0, self.dim**-0.5, generator=generator)
        rows[:, self.dim :].zero_()


def default_height(dim: int) -> int:
    """Return the largest divisor of ``dim`` up to √(2 dim): 20 for the paper's 200, with stacked images of 40×10."""
    return next(height for height in range(math.isqrt(2 * dim), 0, -1) if dim % height == 0)


def feature_map_shape(dim: int, height: int, kernel: int) -> tuple[int, int]:
    """Return rows and columns of a feature map.

    Raises:
        ConfigError: ``height`` does not divide ``dim``, or the filter is larger than the stacked image.
    """
    if dim % height:
        raise ConfigError(f"model.options.height={height}: conve needs a divisor of model.dim={dim}")
    rows, columns = 2 * height - kernel + 1, dim // height - kernel + 1
    if min(rows, columns) < 1:
        raise ConfigError(
            f"model.options.kernel={kernel}: conve's stacked image is only {2 * height}×{dim // height}; "
            "lower kernel, or change model.dim or model.options.height"
        )
    return rows, columns
