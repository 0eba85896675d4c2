"""What the two parameters of DANS-KGC are worth under the same time limit, each alone.

μ says how strongly difficulty decides about noise, η is the weight of what is made.

Quality, not speed: as ``benchmarks.dans_ablation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import begin
from benchmarks.dans_ablation import compare, dans

SHARPNESS = (0.5, 1.0, 2.0)
WEIGHTS = (0.05, 0.1, 0.25, 0.5, 1.0)
VARIANTS = {
    **{f"μ = {sharpness:g}": dans({"diffusion": {"sharpness": sharpness}}) for sharpness in SHARPNESS},
    **{f"η = {weight:g}": dans({"weight": weight}) for weight in WEIGHTS},
}
"""Row → changes of the preset; the others keep their defaults, μ = 1 and η = 0.25."""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every variant with every seed; ``--repetitions`` seeds."""
    return compare(begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", repetitions=1), VARIANTS)


if __name__ == "__main__":
    main()
