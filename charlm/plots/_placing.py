"""Where the labels of points go, so that none covers another one or a point.

Own code, as libraries for it, such as adjustText, only lessen overlaps, and bring scipy with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Between a label and whatever is beside it, in the units of all arguments below.
_GAP = 1.5
# Places are tried on rectangles around a point, one this much larger than the other, up to the last.
_RING, _RINGS = 2.5, 80
_ANGLES = 24


def place(points: Tensor, sizes: Tensor, obstacles: Tensor, radius: float, area: Sequence[float]) -> Tensor:
    """The centres of rectangular labels, each as near to its point as those before it leave room.

    The same arguments give the same places. A label that has no room within 200 covers as few others as it can.

    Args:
        points: (N, 2), what is labelled, in the order in which labels choose their places.
        sizes: (N, 2), width and height of each label.
        obstacles: (M, 2), the points that no label may cover.
        radius: of a drawn point.
        area: left, bottom, right and top of where labels may be.

    Returns:
        (N, 2), the centres.
    """
    # The innermost rectangle is where a label touches its point; places on it begin above and beneath.
    turns = torch.arange(_ANGLES // 2, dtype=points.dtype) / _ANGLES + 0.25
    angles = 2.0 * math.pi * torch.stack([turns, turns + 0.5], dim=1).flatten()
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    directions = directions / directions.abs().amax(dim=1, keepdim=True)
    taken = torch.cat([obstacles - radius, obstacles + radius], dim=1)
    centres = []
    for point, extent in zip(points, 0.5 * sizes + _GAP, strict=True):
        centre = _best_place(point, extent, extent + radius, directions, taken, area)
        centres.append(centre)
        taken = torch.cat([taken, torch.cat([centre - extent, centre + extent]).unsqueeze(0)])
    return torch.stack(centres) if centres else points


def _best_place(
    point: Tensor, extent: Tensor, distance: Tensor, directions: Tensor, taken: Tensor, area: Sequence[float]
) -> Tensor:
    """The centre (2,) of the first free place, or of the first of those that cover the least of `taken` (K, 4)."""
    fewest, best = math.inf, point
    for ring in range(_RINGS):
        candidates = point + directions * (distance + ring * _RING)
        boxes = torch.cat([candidates - extent, candidates + extent], dim=1)
        apart = (boxes[:, None, 2:] <= taken[:, :2]) | (taken[:, 2:] <= boxes[:, None, :2])
        covering = (~apart.any(dim=2)).sum(dim=1)
        outside = (boxes[:, 0] < area[0]) | (boxes[:, 1] < area[1]) | (boxes[:, 2] > area[2]) | (boxes[:, 3] > area[3])
        covering += len(taken) * outside
        least = int(covering.argmin())
        if covering[least] < fewest:
            fewest, best = int(covering[least]), candidates[least]
        if fewest == 0:
            break
    return best
