"""The built-in scenarios, one file each; entry points of group `asys.scenario`."""
