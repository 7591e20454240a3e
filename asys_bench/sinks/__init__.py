"""Built-in sinks: what worker processes do with packets."""
