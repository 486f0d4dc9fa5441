"""From a program to a streaming network: which axes stream, which units, which FIFOs."""
