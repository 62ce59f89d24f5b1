"""A run's loss and development scores as a picture.

Knows nothing of how records are made.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_SMOOTHING = 20  # steps


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the loss, smoothed, and the development scores below each other into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = [(one["step"], one["loss"]) for one in records if "loss" in one]
    scores = [(one["step"], one["mean"]) for one in records if "mean" in one]
    figure = Figure(figsize=(7, 6 if scores else 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if scores else 1, 1, squeeze=False)[:, 0]
    if losses:
        steps, values = np.array(losses, dtype=float).T
        axes[0].plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8)
        width = min(_SMOOTHING, len(values))
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes[0].plot(steps[width - 1 :], smooth, color="tab:blue", label=f"mean of {width} records")
        axes[0].legend(frameon=False)
    axes[0].set(xlabel="step", ylabel="loss (nats)")
    if scores:
        for name, label in (("none", "instruction only"), ("shown", "with demonstrations")):
            points = [(step, mean[name]) for step, mean in scores if mean[name] is not None]
            if points:
                axes[1].plot(*zip(*points, strict=True), marker="o", label=label)
        axes[1].set(xlabel="step", ylabel="nDCG@10, development")
        axes[1].legend(frameon=False)
    for axis in axes:
        axis.grid(alpha=0.3)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=130)
    partial.replace(path)
