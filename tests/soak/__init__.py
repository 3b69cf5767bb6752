"""`./dev soak`: fuzzers of every parser, mutated recipes and command lines, and runs that are killed."""
