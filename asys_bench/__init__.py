"""A-Sys-I: a telescope for the inside of running PyTorch models."""

__version__ = "0.1.0"
