"""One thread, set before torch is imported: bit-for-bit comparisons hold only between runs with the same number of threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Whole runs first: workers take files in this order, so no long one is left for the end."""
    items.sort(key=lambda item: item.path.parent.name != "workflow")
