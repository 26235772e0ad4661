"""A folder that `evaluate.load` takes: the module in it bears its name."""
