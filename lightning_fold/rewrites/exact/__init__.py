"""Exact rewrites: a network with zeros becomes a smaller dense one that computes the same function."""
