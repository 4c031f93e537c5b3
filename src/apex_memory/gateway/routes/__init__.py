"""The routes: one file per subject, with the models of its requests and responses."""
