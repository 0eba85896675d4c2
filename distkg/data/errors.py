"""What goes wrong with stores and with the files they are made from."""


class StoreError(ValueError):
    """A store that cannot be opened, read, made or trusted; the message says which and what to do."""


class IngestError(StoreError):
    """A source that cannot become a store; the message names the file, the line and what to do."""
