"""fit and the other commands of training: the command line, a line an epoch, dense against compressed."""
