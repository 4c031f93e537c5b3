"""Simulators of the nine vendors, over one logistics world: what `apex simulate`, the demo and the tests run.

They speak the vendors' wire contracts on loopback (auth, paging, cursors, limits, errors, signed webhooks) and know
nothing of Apex: a bug in a source cannot hide in its simulator. `world` is what happens; `vendor` is what a simulator
is; one module a vendor tells the world in that vendor's words; `program` serves them all.
"""
