"""From pictures to a taught model: one request becomes a config, a recipe and a store, and then a model that is measured."""
