"""Command line of distkg: each command parses its arguments, calls one function, and prints the result."""

# isort: off
# Commands appear in the help in the order in which their modules are read.
from distkg.cli.app import app, main
from distkg.cli import graphs, tokens, training, growth, models, settings
# isort: on

__all__ = ["app", "graphs", "growth", "main", "models", "settings", "tokens", "training"]
