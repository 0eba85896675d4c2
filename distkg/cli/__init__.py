"""The command line: parse, call one function, print what it returns."""

# isort: off
# Commands appear in the help in the order in which their modules are read.
from distkg.cli.app import app, main
from distkg.cli import graphs, tokens, training, models, settings
# isort: on

__all__ = ["app", "graphs", "main", "models", "settings", "tokens", "training"]
