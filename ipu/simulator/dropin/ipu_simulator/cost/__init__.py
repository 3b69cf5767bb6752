"""What a graph costs on a machine: cycles, bytes, schedule. Knows nothing of any model."""
