"""prune and fold: fewer channels with as little change of the function as possible."""
