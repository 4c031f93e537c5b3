"""`/ops`: the panels that show how an installation works, and a page of them. The Grafana dashboards are generated from the same panels."""
