"""What goes wrong when a run is read."""


class ReadingError(RuntimeError):
    """There is no such run, hook or column; the message names what there is."""
