"""Scheduling of retrainings: jobs, cron expressions, the scheduler process, and the Prefect flow."""
