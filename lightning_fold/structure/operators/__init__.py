"""Nodes of the graph: which operator each is, its family and its operands."""
