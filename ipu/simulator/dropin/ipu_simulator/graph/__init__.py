"""The program as a graph: what one micro batch computes, forward and backward, operation by operation."""
