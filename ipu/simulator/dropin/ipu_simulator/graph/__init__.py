"""The program as a graph: the operations of one micro batch, forward and backward."""
