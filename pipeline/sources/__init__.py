"""The sources of pictures: one module for each value of `source.name` in params.yaml."""
