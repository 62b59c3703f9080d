"""Pictures: of runs, their losses and what the models have learned, of sweeps, and of races.

They need matplotlib; it is imported when the first figure is drawn.
"""

from __future__ import annotations

from charlm.plots.curves import loss_curve
from charlm.plots.distribution import next_character
from charlm.plots.embedding import embedding_map
from charlm.plots.files import check_picture, is_picture, save, write
from charlm.plots.heat_maps import count_map, probability_map
from charlm.plots.histograms import activation_histograms, gradient_histograms
from charlm.plots.run_figures import figures, names
from charlm.plots.speed import speed_chart
from charlm.plots.sweep import sweep_chart

__all__ = [
    "activation_histograms",
    "check_picture",
    "count_map",
    "embedding_map",
    "figures",
    "gradient_histograms",
    "is_picture",
    "loss_curve",
    "names",
    "next_character",
    "probability_map",
    "save",
    "speed_chart",
    "sweep_chart",
    "write",
]
