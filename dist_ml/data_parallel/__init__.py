"""Data parallelism: who trains on which samples, and how the ranks' gradients become one."""
