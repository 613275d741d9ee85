"""The page: what a visitor sees and touches. Knows words, layout and the shape of the API, no model and no server."""
