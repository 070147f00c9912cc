"""The ledger: served forecasts, their actuals, and the resulting accuracy. Needs SQLAlchemy."""
