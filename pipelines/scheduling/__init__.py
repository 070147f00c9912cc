"""Scheduling of retrainings: jobs, cron expressions, the scheduler process, the Prefect flow, and Ray."""
