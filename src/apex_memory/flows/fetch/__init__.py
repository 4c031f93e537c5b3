"""From vendor to inbox: workflows for pulls, streams, files and backfills, with their activities and messages."""
