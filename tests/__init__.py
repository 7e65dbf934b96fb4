"""Tests of streamsink."""

import os

# A tiny model is done with one thread before another has begun, and beside other work threads that
# wait for one another take many times as long. OpenMP reads this as it is loaded, in children too.
os.environ.setdefault("OMP_THREAD_LIMIT", "1")
