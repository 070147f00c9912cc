"""The demo: trains real models, serves one, requests forecasts over HTTP, and shows them on one page."""
