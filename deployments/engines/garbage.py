"""The garbage collector in a process that has started and now serves."""

from __future__ import annotations

import gc

YOUNG = 10_000
"""Objects made, less those freed, between two collections of the young; 700 would be about a request's."""


def settle() -> None:
    """Take what start-up made, which stays for good, out of all further collections, and collect less often.

    The imports of a replica alone are a million objects: going through them stops every stream for as long.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
