"""One thread, set before torch is imported: bit-for-bit comparisons hold only between runs with the same number of threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
