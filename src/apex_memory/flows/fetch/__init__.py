"""From vendor to inbox: the workflows of pulls, streams, files and backfills, with their activities and messages."""
