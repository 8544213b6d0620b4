"""Layers that the ranks of the operator axis share: how their products are cut, and what moves."""
