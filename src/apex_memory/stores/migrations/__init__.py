"""Numbered SQL files, applied once each, in order. A file that was released is never edited."""
