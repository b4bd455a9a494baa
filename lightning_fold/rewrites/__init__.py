"""DECIDE: what each method removes, merges or replaces. One module for each method, one function in each module."""
