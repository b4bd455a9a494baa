"""prune and fold: fewer channels, the function changes as little as possible."""
