"""Built-in sinks: what worker processes do with packets. `decoding` is from a packet to its tensor."""
