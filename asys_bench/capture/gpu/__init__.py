"""Activations that live on a GPU: encoded and copied on a side stream, committed when they arrived."""
