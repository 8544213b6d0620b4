"""Measuring: timers, statistics, environment. A leaf; what is measured receives it and never asks
for it.
"""
