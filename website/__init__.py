"""The documentation site: pages that are generated at build time, links, and marks of shell blocks."""
