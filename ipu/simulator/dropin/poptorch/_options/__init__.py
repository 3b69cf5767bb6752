"""What poptorch.Options is made of: sections, strategies, and the names that a compilation knows."""
