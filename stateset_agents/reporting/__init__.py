"""What a run shows: the page, the terminal, the KPIs."""
