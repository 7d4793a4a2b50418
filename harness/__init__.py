"""The house of train_grpo.py; its first line runs before torch is imported, in every program of ours."""

import os

# OpenMP's threads that spin while they wait take the cores from each other where anything else runs (benchmarks).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
