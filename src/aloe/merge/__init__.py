"""Merging models: pure arithmetic on arrays (`philox`, `sparsify`, `consensus`, `methods`), safetensors in and out
(`tensors`), tensor-by-tensor streaming (`stream`) and the `merge` verb (`step`)."""

from aloe.merge.methods import dare_linear, dare_ties, linear, slerp, task_arithmetic, ties

__all__ = ["dare_linear", "dare_ties", "linear", "slerp", "task_arithmetic", "ties"]
