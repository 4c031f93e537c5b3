"""The engines that `apex up` runs: one module per server, a process wrapper, the supervisor, and the state of the stack on disk."""
