"""Simulators of the nine vendors over one logistics world, for `apex simulate`, the demo and the tests.

They speak the vendors' wire contracts on loopback (authentication, paging, cursors, limits, errors, signed webhooks) and
import nothing of Apex, so that no bug can hide in both. `world` holds what happens, `vendor` what a simulator is; a
package for each vendor turns the world into that vendor's API and webhooks; `server` and `delivery` run them.
"""
