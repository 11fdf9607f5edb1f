"""One module per command; each has `run(args)`, called with the parsed arguments."""
