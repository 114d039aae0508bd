"""The shop: its databases, how it is generated, its money, stock, calendar and accounts."""
