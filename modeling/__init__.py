"""Ids to loss. These files travel with checkpoints: same-folder relative imports only."""
