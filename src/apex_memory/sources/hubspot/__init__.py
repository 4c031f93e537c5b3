"""HubSpot, the CRM."""
