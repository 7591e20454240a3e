"""Instrument floor: a bus that counts packets and transports nothing."""
