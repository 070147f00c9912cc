"""The scheduler: jobs, cron expressions, the process that runs them, and the Prefect flow."""
