"""Using and sharing checkpoints: vectors for files, cards, the Hub."""
