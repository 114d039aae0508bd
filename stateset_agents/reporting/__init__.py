"""What users see of a run: the page, the terminal, the KPIs."""
