"""Distributing a budget for the whole network over its widths."""
