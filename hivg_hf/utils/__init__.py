"""What knows nothing of grounding: atomic files, optional imports, safe pickles, strict YAML."""
