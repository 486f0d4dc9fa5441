"""Run decoder-only language models: weight readers, cache, sampling, chat, server."""
