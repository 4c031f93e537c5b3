"""The embedded vector server: Qdrant Edge shards behind a loopback socket, in a process of its own.

`server` is the process, `protocol` and `connection` the wire, `corpus` all shards as one, `shard` and `catalogue` one of them,
`builder` indexes in another process, `shard_list` is the file that names the shards.
"""
