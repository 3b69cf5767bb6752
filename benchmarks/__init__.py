"""This program's own measurements: one file a subcommand of run_benchmark.py.

A subcommand's module has `add_flags(parser)` and `run(flags, output, budget)`, which writes its files into
the folder `output` and returns what it wrote.
"""
