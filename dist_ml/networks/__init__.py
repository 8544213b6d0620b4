"""Networks of accelerators as values: links, switches, bandwidths in closed form, routes, cost, and
what collectives take on them. Pure; nothing here communicates.
"""
