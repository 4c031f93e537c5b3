"""Sources: a package a vendor. A source turns what a vendor sends into events, and an event into a document.

`base` is the class to derive from, `pages` what a pull brings, `http` and `auth` the way out to a vendor, `payloads` and
`signatures` the reading of what comes in, `registry` the list of all. Modules have the same names in all packages: `source`
(the class) and `samples`; further `settings` where a source has some of its own, `api` where it calls its vendor, and
`documents` (payload to document). The package `documents`, for files and texts of any kind, has none of these three; `llm` and
`edi` have no `api`. docs/howto/add-a-source.md adds one step by step.
"""
