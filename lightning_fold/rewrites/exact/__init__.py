"""Exact rewrites: a network with zeros becomes a smaller dense one of the same function."""
