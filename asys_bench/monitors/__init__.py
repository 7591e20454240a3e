"""Monitors: they read the stats page and the bus's account, and show or write what they say."""
