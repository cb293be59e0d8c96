"""One thin Trainer, recipes, metrics, plots."""
