"""From a parsed request to one outcome per series: batching, sampling, deadlines."""
