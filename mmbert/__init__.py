"""The library: everything that makes, trains, releases and evaluates the model. It knows no orchestrator."""

__version__ = "0.1.0"
