"""READ: what a network computes and which of its channels belong together.

``trace`` exports the network to one graph of ATen operators. The graph is interpreted three times: with constants
(which channels do not depend on the input), with labels (which channels shrink together) and, backwards, with
liveness (which channels can reach the output). Nothing in this package changes the network.
"""
