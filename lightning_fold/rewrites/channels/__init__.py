"""Shared by all methods that remove or merge channels."""
