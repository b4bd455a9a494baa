"""What callbacks ask of a training loop: the network's inputs, training batches, what cannot follow a rewrite."""
