"""Faults: the protocol as a model, random use of the real engines, and the crash loop against the whole stack."""
