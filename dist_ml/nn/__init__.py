"""Layers that compute on tuned kernels and write their gradients where they are exchanged."""
