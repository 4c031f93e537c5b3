"""Work by the clock and by hand: sweep, collect, reconcile, and the smoke test."""
