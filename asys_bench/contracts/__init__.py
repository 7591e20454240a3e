"""The written contracts of everything that is pluggable. Nothing here imports a plugin."""
