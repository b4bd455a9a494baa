"""Create zeros in weights, count them, and make them trainable again."""
