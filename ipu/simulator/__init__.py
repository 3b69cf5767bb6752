"""The simulator: the folder that a program gets in place of Graphcore's packages, and the command for it."""
