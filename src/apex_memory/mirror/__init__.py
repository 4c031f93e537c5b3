"""The legacy mirror: accepted webhooks are also forwarded to the system that Apex replaces, durably and in order.

`copies` stores a webhook in the transaction of its landing. `forwarder` sends the copies of each source, one after
the other, to the source's `mirror_url` (`target`), whose addresses `guard` checks. `queue` holds the states of a copy:
`waiting → delivered`, `waiting → dead → waiting` by a redrive, and `discarded`.
"""

from apex_memory.mirror.mirror import Mirror

__all__ = ["Mirror"]
