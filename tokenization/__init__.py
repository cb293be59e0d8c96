"""Text to ids. These files travel with checkpoints: same-folder relative imports only."""
