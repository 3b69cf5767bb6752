"""The cost of a graph on a machine: cycles, bytes, schedule. Independent of any particular model."""
