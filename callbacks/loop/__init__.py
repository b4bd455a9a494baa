"""The training loop as callbacks see it: the network's inputs, training batches, and incompatible setups."""
