"""How much memory is in use on the cards that this process was given."""

from __future__ import annotations

import os


def used_gb() -> float:
    """GB (10^9 bytes) in use on all cards of `CUDA_VISIBLE_DEVICES`, by whomever; 0 where that names none.

    NVML answers in microseconds, sees what other processes of the same engine hold, and needs no CUDA
    context of its own, which would take memory itself.
    """
    cards = [card.strip() for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card.strip()]
    if not cards:
        return 0.0
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(int(card))
            if card.isdecimal()
            else pynvml.nvmlDeviceGetHandleByUUID(card)
            for card in cards
        ]
        return sum(pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles) / 1e9
    finally:
        pynvml.nvmlShutdown()
