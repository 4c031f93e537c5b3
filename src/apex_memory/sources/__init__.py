"""Sources: a package a vendor, with the same names for the same things. A source turns what a vendor sends into events, and an event into a document.

`base` is the class to derive from, `pages` what a pull brings, `http` and `auth` the way out to a vendor, `payloads` and
`signatures` the reading of what comes in, `registry` the list of all. Each package has `source` (the class) and `samples`;
further `settings` where it has some of its own, `api` where it calls its vendor, and `documents` (payload to document).
`documents`, for files and texts of any kind, has none of the three; `llm` and `edi` call no API. docs/howto/add-a-source.md adds one
step by step.
"""
