"""Where a program runs: meshes, dataflow clusters, edge devices."""
