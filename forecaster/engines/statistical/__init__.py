"""Classical statistical models and their blend with the network."""
