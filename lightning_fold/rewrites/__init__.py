"""DECIDE: methods choose the parts to remove, merge or replace. One module per method, one function per module."""
