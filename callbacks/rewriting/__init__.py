"""What the callbacks that rewrite a network share."""
