"""How a data set is loaded in the background."""
