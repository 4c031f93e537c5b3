"""Carriers' EDI: X12 files from a folder, an SFTP server or the API."""
