"""A module that cannot be imported."""

raise RuntimeError("broken while importing")
