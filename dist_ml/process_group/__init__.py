"""PyTorch's `torch.distributed` on a communicator: a `ProcessGroup`, and its registration.

`dist_ml/torch_backend.py` is what users import.
"""
