"""Sources: a package a vendor, all of one shape. A source turns what a vendor sends into events, and an event into a document.

`base` is the class to derive from, `pages` what a pull brings, `http` and `auth` the way out to a vendor, `payloads` and
`signatures` the reading of what comes in, `registry` the list of all. A vendor's package has `source` (the class),
`settings`, `api` (calls to the vendor), `documents` (payload to document) and `samples`. docs/howto/add-a-source.md
adds one step by step.
"""
