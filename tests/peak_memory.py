"""How much memory tensors take at most while something runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from cases import device
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity


def peak_allocation(run: Callable[[], Any]) -> int:
    """The most bytes of tensors that were alive at once and that `run` allocated."""
    if device.type == "cuda":
        run()  # for what libraries allocate once
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profile:
        run()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = list(profile.profiler.kineto_results.experimental_event_tree())
    changes = []
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(itertools.accumulate(change for _, change in sorted(changes)))
