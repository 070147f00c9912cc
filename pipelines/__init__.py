"""What happens over time: read data, fit, backtest, judge, register, promote; the schedule and the command line."""
