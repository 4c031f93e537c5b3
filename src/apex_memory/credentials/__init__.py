"""Keys and secrets: the encrypted vault, OAuth tokens of vendors, stored secrets laid over settings, API keys."""
