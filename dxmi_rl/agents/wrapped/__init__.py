"""Algorithms of other libraries as agents, and the densities of other libraries' policies."""
