"""Errors of stores and of the files from which stores are made."""


class StoreError(ValueError):
    """A store cannot be opened, read, made or trusted; the message names the store and says what to do."""


class IngestError(StoreError):
    """A source file cannot become a store; the message names the file and line and says what to do."""
