"""Train compressible networks with PyTorch Lightning and get small dense ones back."""
