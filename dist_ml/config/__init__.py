"""Configuration: frozen dataclasses, one documented field a line, filled strictly from plain
mappings at the edge.

A leaf: it imports nothing of the package but `errors`, and the library below the command line never
sees a raw config node.
"""
