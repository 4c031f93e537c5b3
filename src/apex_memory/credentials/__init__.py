"""Keys and secrets: the encrypted vault, OAuth tokens of vendors, stored secrets that overlay settings, API keys."""
