"""Training: the trainer, what it leaves behind, and `build`, the only place that turns a
configuration into objects.
"""
