"""Executing a compiled model: its arguments, weights on device and host, outputs, predictions and files."""
