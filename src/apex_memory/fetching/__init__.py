"""Everything that Apex fetches rather than receives: pulls, files, readings of streams and their windows, backfills.

Everything that a page brings is committed in one transaction with its cursor.
"""
