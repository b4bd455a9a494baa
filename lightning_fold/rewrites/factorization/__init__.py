"""Layers become pairs of low rank."""
