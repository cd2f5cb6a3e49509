"""Lightning lives here: stages, the chain of stages, sharding, callbacks."""
