"""The ledger: which forecasts were served, what came instead, and how well they agree. Needs SQLAlchemy."""
