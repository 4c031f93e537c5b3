"""Simulator: HubSpot, the CRM."""
