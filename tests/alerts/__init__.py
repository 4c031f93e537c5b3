"""`make alerts`: fires each alert of deploy/prometheus on a running stack by the fault that it is for, and waits until it clears."""
