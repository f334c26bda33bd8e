"""Training and export: the home of torch."""
