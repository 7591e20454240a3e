"""heads: a projection's rows split into those of its heads."""
