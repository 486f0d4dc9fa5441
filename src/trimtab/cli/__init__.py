"""The trimtab command: one file a verb."""
