"""Simulator: Conversations with language models."""
