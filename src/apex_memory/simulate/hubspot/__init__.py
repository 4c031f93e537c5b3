"""Simulator of HubSpot, the CRM."""
