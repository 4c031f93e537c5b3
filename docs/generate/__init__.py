"""Makes the documentation's pictures and its site. Not part of the installed package."""
