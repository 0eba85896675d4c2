"""Measurements of speed and memory, each beside a peer or a roofline of the same run. See README.md."""
