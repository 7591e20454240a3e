"""The summary at the end of a run: what happened, whether every packet is accounted for, what next."""
