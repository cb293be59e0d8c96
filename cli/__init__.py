"""The shell face: one file a verb, heavy imports inside the verb."""
