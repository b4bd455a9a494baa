"""Which width keeps how many channels under a budget for the whole network."""
