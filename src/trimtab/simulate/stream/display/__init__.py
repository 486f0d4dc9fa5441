"""Reports for people and for other tools: text, a page, DOT, trace events, VCD."""
