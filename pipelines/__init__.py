"""What happens over time: fetch, fit, backtest, judge, register, promote."""
