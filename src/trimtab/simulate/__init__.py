"""Hardware that you do not have: streaming dataflow chips and systolic arrays."""
