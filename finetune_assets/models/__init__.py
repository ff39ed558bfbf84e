"""The wing of weights: from a base to a merged model."""
