"""The routes, a file a subject, each with the models of its answers."""
