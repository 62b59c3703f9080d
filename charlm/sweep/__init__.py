"""Many trainings at once: which options are tried, who goes on, what came of it, and the best one as a run.

`Sweep` trains them, as `SweepConfig` says; `charlm.search_space` has the ranges that values can be drawn from.
"""

from __future__ import annotations

from charlm.sweep.config import SweepConfig
from charlm.sweep.halving import Rung
from charlm.sweep.results import SettingResult, SweepResult
from charlm.sweep.training import Sweep, SweepProgress

__all__ = ["Rung", "SettingResult", "Sweep", "SweepConfig", "SweepProgress", "SweepResult"]
