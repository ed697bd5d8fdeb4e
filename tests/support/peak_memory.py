"""A limit on the memory that a block takes, numpy's arrays included."""

import contextlib
import tracemalloc


@contextlib.contextmanager
def at_most_mib(limit):
    """Fail if the block's peak, over what there was before, is above `limit` MiB."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert peak <= limit, f"{peak:.0f} MiB, allowed {limit}"
