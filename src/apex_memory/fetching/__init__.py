"""What Apex fetches rather than receives: pulls page by page, files, readings of streams and their windows, backfills.

Everything a page brings is committed in one transaction with its cursor.
"""
