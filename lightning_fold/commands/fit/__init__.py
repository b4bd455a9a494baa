"""fit and the other training commands: command line, one line per epoch, dense-against-compressed summary."""
